package corpus

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"
)

// stepTime bounds one step.
const stepTime = 2 * time.Minute

// Play starts a kernel, does every step in it, and shuts it down. It gives what came, normalised, for each step.
func Play(ctx context.Context, server Server, protocol string) ([][]string, error) {
	var kernel struct {
		ID string `json:"id"`
	}
	if err := server.Do(ctx, "POST", "api/kernels", map[string]any{"name": "python3"}, &kernel); err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepTime)
		defer cancel()
		_ = server.Do(ctx, "DELETE", "api/kernels/"+kernel.ID, nil, nil)
	}()
	c, err := server.Connect(ctx, kernel.ID, "the-session", protocol)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var all [][]string
	for _, step := range Steps {
		limited, cancel := context.WithTimeout(ctx, stepTime)
		got, err := c.play(limited, step)
		if err == nil {
			// After an error a kernel takes no requests for a moment. How long is a matter of time, so that it is waited for.
			_, err = c.play(limited, Step{Request: "kernel_info_request", Content: map[string]any{}})
		}
		cancel()
		if err != nil {
			return all, fmt.Errorf("step %q: %w", step.Name, err)
		}
		all = append(all, got)
	}
	return all, nil
}

// played collects what belongs to the requests of a step.
type played struct {
	client   *Client
	requests []map[string]any // headers
	channel  string
	answers  []string
	waiting  map[string]string // what is still to come of each request
	lines    map[string][]Message
}

func (c *Client) play(ctx context.Context, step Step) ([]string, error) {
	p := &played{client: c, channel: step.Channel, answers: step.Answers, waiting: map[string]string{}, lines: map[string][]Message{}}
	if p.channel == "" {
		p.channel = "shell"
	}
	codes := []string{step.Code}
	if step.Then != "" {
		codes = append(codes, step.Then)
	}
	for i, code := range codes {
		m := Message{Channel: p.channel, Buffers: step.Buffers, Content: step.Content, Metadata: map[string]any{"cellId": "the-cell"}}
		kind := step.Request
		if kind == "" {
			kind = "execute_request"
			m.Content = map[string]any{"code": code, "silent": false, "store_history": true, "user_expressions": map[string]any{}, "allow_stdin": true, "stop_on_error": true}
			if i == 0 {
				maps.Copy(m.Content, step.Options)
			}
		}
		m.Header = c.Header(kind)
		p.requests = append(p.requests, m.Header)
		id := text(m.Header["msg_id"])
		p.waiting["idle "+id] = step.Name
		if !step.Quiet {
			p.waiting["reply "+id] = step.Name
		}
		if err := c.Send(ctx, m); err != nil {
			return nil, err
		}
	}
	said, interrupted := "", step.Interrupt == ""
	for len(p.waiting) > 0 {
		m, err := c.Receive(ctx)
		if err != nil {
			return nil, fmt.Errorf("%v still to come: %w", p.waiting, err)
		}
		if err := p.take(ctx, m); err != nil {
			return nil, err
		}
		if m.kind() == "stream" {
			said += text(m.Content["text"])
		}
		if !interrupted && strings.Contains(said, step.Interrupt) {
			interrupted = true
			if err := c.server.Do(ctx, "POST", "api/kernels/"+c.kernel+"/interrupt", nil, nil); err != nil {
				return nil, err
			}
		}
	}
	return p.normal()
}

// take files a message, and answers what asks for input.
func (p *played) take(ctx context.Context, m Message) error {
	number := -1
	for i, header := range p.requests {
		if m.parent() == text(header["msg_id"]) {
			number = i
		}
	}
	if number < 0 {
		return nil // of another request: what a server asks by itself
	}
	// What a kernel answers names the request by its whole header.
	for _, field := range []string{"msg_id", "msg_type", "session", "username", "version"} {
		if m.Parent[field] != p.requests[number][field] {
			return fmt.Errorf("a %s answers a request whose %s is %v and not %v", m.kind(), field, m.Parent[field], p.requests[number][field])
		}
	}
	switch {
	case m.Channel == "iopub" && m.kind() == "status" && m.Content["execution_state"] == "idle":
		delete(p.waiting, "idle "+m.parent())
	case m.Channel == p.channel:
		delete(p.waiting, "reply "+m.parent())
	case m.Channel == "stdin":
		if len(p.answers) == 0 {
			return fmt.Errorf("input is asked for once too often: %v", m.Content)
		}
		answer := Message{Channel: "stdin", Header: p.client.Header("input_reply"), Parent: m.Header, Content: map[string]any{"value": p.answers[0], "status": "ok"}}
		p.answers = p.answers[1:]
		if err := p.client.Send(ctx, answer); err != nil {
			return err
		}
	}
	key := fmt.Sprintf("%s %d", m.Channel, number)
	lines := p.lines[key]
	// How much of a stream comes at once is a matter of time.
	if n := len(lines); n > 0 && m.kind() == "stream" && lines[n-1].kind() == "stream" && m.Content["name"] == lines[n-1].Content["name"] {
		lines[n-1].Content["text"] = text(lines[n-1].Content["text"]) + text(m.Content["text"])
		return nil
	}
	p.lines[key] = append(lines, m)
	return nil
}

// normal gives what came, one line for each message, channel by channel: between two of them there is no order.
func (p *played) normal() ([]string, error) {
	var result []string
	for number := range p.requests {
		for _, channel := range []string{"iopub", "stdin", "control", "shell"} {
			for _, m := range p.lines[fmt.Sprintf("%s %d", channel, number)] {
				line, err := json.Marshal(map[string]any{
					"channel": m.Channel, "request": number, "header": normalHeader(m.Header), "metadata": normalValue("", m.Metadata),
					"content": normalValue("", m.Content), "buffers": m.Buffers,
				})
				if err != nil {
					return nil, err
				}
				result = append(result, string(line))
			}
		}
	}
	return result, nil
}
