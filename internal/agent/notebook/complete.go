package notebook

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/kernel"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// maxAsk is how long a kernel may take to complete or to inspect.
	maxAsk         = 10 * time.Second
	maxCompletions = 500
	// maxCompletion and maxSignature are bytes of one completion, maxInspection those of an inspection.
	maxCompletion = 1 << 10
	maxSignature  = 512
	maxInspection = 64 << 10
)

// question is what CompleteCode and InspectCode have in common.
type question interface {
	GetPath() string
	GetKernel() string
	GetCode() string
	GetCursor() int32
}

// CompleteCode asks a kernel that executes nothing what could be written at a place.
func (s *Service) CompleteCode(ctx context.Context, request *carrelv1.CompleteCodeRequest) (*carrelv1.CompleteCodeResponse, error) {
	var reply completeReply
	if err := s.ask(ctx, request, "complete_request", map[string]any{"code": request.GetCode(), "cursor_pos": request.GetCursor()}, &reply); err != nil {
		return nil, err
	}
	return reply.show(int32(utf8.RuneCountInString(request.GetCode())), request.GetCursor()), nil
}

// completeReply is a kernel's complete_reply; IPython tells types in an extension of its own. Nothing in it is trusted.
type completeReply struct {
	Matches  []string `json:"matches"`
	Start    int32    `json:"cursor_start"`
	End      int32    `json:"cursor_end"`
	Metadata struct {
		Types []struct {
			Text      string `json:"text"`
			Type      string `json:"type"`
			Signature string `json:"signature"`
		} `json:"_jupyter_types_experimental"`
	} `json:"metadata"`
}

// show makes an answer about a code of so many code points, asked at cursor.
func (r completeReply) show(length, cursor int32) *carrelv1.CompleteCodeResponse {
	response := &carrelv1.CompleteCodeResponse{Start: r.Start, End: r.End}
	if r.Start < 0 || r.Start > r.End || r.End > length {
		response.Start, response.End = cursor, cursor
		if len(r.Matches) > 0 { // nobody knows what they stand in place of
			response.Truncated = true
		}
		return response
	}
	details := make(map[string]int, len(r.Metadata.Types))
	for i, one := range r.Metadata.Types {
		details[one.Text] = i
	}
	for _, text := range r.Matches {
		if len(response.Completions) == maxCompletions || len(text) > maxCompletion {
			response.Truncated = true
			continue
		}
		one := &carrelv1.Completion{Text: strings.ToValidUTF8(text, "�")}
		if i, known := details[text]; known {
			kind := r.Metadata.Types[i]
			if kind.Type != "<unknown>" {
				one.Type = cutText(kind.Type, 64)
			}
			one.Signature = cutText(kind.Signature, maxSignature)
		}
		response.Completions = append(response.Completions, one)
	}
	return response
}

// InspectCode asks a kernel that executes nothing what it knows of what stands at a place.
func (s *Service) InspectCode(ctx context.Context, request *carrelv1.InspectCodeRequest) (*carrelv1.InspectCodeResponse, error) {
	level := 0
	if request.GetDetailed() {
		level = 1
	}
	var reply struct {
		Found bool           `json:"found"`
		Data  map[string]any `json:"data"`
	}
	content := map[string]any{"code": request.GetCode(), "cursor_pos": request.GetCursor(), "detail_level": level}
	if err := s.ask(ctx, request, "inspect_request", content, &reply); err != nil {
		return nil, err
	}
	text, _ := reply.Data["text/plain"].(string)
	if !reply.Found || text == "" {
		return &carrelv1.InspectCodeResponse{}, nil
	}
	kept := cutText(text, maxInspection)
	return &carrelv1.InspectCodeResponse{Found: true, Text: kept, Truncated: len(kept) < len(text)}, nil
}

// ask puts a question to the kernel that it is meant for, and reads the reply.
func (s *Service) ask(ctx context.Context, about question, kind string, content, reply any) error {
	if err := s.open(); err != nil {
		return err
	}
	code, cursor := about.GetCode(), about.GetCursor()
	switch {
	case len(code) > maxCode:
		return carrel.Errorf(carrel.CodeInvalid, "code_too_large", "the code has %d bytes; at most %d are looked at", len(code), maxCode)
	case cursor < 0 || int(cursor) > utf8.RuneCountInString(code):
		return carrel.Errorf(carrel.CodeInvalid, "bad_cursor", "the cursor is at %d; it may be from 0 to %d, the number of code points of the code", cursor, utf8.RuneCountInString(code))
	}
	k, err := s.kernelAsked(about.GetPath(), about.GetKernel())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, maxAsk)
	defer cancel()
	if err := k.Ready(ctx); err != nil {
		return tooSlow(ctx, err)
	}
	s.mu.Lock()
	r := s.runners[k.ID()]
	busy := k.Info().Phase == kernel.Busy || r != nil && (r.current != nil || len(r.queue) > 0)
	s.mu.Unlock()
	if busy {
		return carrel.Errorf(carrel.CodePrecondition, "kernel_busy", "the kernel is executing and answers this only when it is done")
	}
	answer, err := k.Ask(ctx, kind, content)
	if err != nil {
		return tooSlow(ctx, err)
	}
	if json.Unmarshal(answer.Content, reply) != nil {
		return carrel.Errorf(carrel.CodePrecondition, "bad_reply", "the kernel's answer was not understood")
	}
	return nil
}

// tooSlow says in people's words that the time for an answer was over.
func tooSlow(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return carrel.Errorf(carrel.CodePrecondition, "kernel_slow", "the kernel did not answer in time; if it stays so, interrupt or restart it")
	}
	return err
}

// kernelAsked gives the kernel that a question is meant for. It starts none: to write is not to execute.
func (s *Service) kernelAsked(path, id string) (*kernel.Kernel, error) {
	missing := carrel.Errorf(carrel.CodePrecondition, "no_kernel", "no kernel runs that could be asked; start one, or execute something")
	if path != "" {
		clean, err := s.path(path)
		if err != nil {
			return nil, err
		}
		if k := s.config.Kernels.OfPath(clean); k != nil {
			return k, nil
		}
		return nil, missing
	}
	if id != "" {
		return s.config.Kernels.Get(id)
	}
	_, name, err := s.config.Kernels.Specs()
	if err != nil {
		return nil, err
	}
	if k := s.sharedKernel(name); k != nil {
		return k, nil
	}
	return nil, missing
}
