package agent

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	defaultFound = 200
	maxFound     = 1000
	// maxLooked bounds how many names one search looks at, findPatience its time.
	maxLooked    = 200_000
	findPatience = 5 * time.Second
	maxFindName  = 255
)

// Find looks below a directory for names, level by level, so that what lies near is found first in a large tree.
func (s *fileService) Find(ctx context.Context, request *connect.Request[carrelv1.FindFilesRequest]) (*connect.Response[carrelv1.FindFilesResponse], error) {
	path, err := s.path(request.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	name, limit := request.Msg.GetName(), int(request.Msg.GetLimit())
	switch {
	case name == "" || len(name) > maxFindName:
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_name", "the name to look for has 1 to %d bytes", maxFindName)
	case limit < 0:
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_limit", "the limit %d is negative", limit)
	case limit == 0:
		limit = defaultFound
	}
	search := &search{name: strings.ToLower(name), limit: min(limit, maxFound), hidden: request.Msg.GetHidden(), until: time.Now().Add(findPatience)}
	if err := s.asUser(ctx, func() error { return search.below(ctx, path) }); err != nil {
		return nil, err
	}
	return connect.NewResponse(&search.found), nil
}

// search is one walk through a tree.
type search struct {
	name   string // in lower case
	limit  int
	hidden bool
	until  time.Time
	looked int
	found  carrelv1.FindFilesResponse
}

// below fails when top cannot be read; of what is below it, what the user may not read is passed over.
func (s *search) below(ctx context.Context, top string) error {
	if _, err := os.ReadDir(top); err != nil {
		return fileError("search", top, err)
	}
	for level := []string{top}; len(level) > 0; {
		var next []string
		for _, dir := range level {
			below, enough := s.in(ctx, dir)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if enough {
				s.found.Truncated = true
				return nil
			}
			next = append(next, below...)
		}
		level = next
	}
	return nil
}

// in looks at the names in one directory and gives the directories in it. enough: the search is over.
func (s *search) in(ctx context.Context, dir string) (below []string, enough bool) {
	entries, _ := os.ReadDir(dir) // as many as can be read, by name
	for _, entry := range entries {
		name := entry.Name()
		if !s.hidden && name[0] == '.' {
			continue
		}
		s.looked++
		if s.looked > maxLooked || s.looked%readBatch == 0 && (ctx.Err() != nil || time.Now().After(s.until)) {
			return nil, true
		}
		path := filepath.Join(dir, name)
		if strings.Contains(strings.ToLower(carrel.EncodeFileName(name)), s.name) {
			if len(s.found.Files) == s.limit {
				return nil, true
			}
			if info, err := stat(path); err == nil { // it may have gone away
				s.found.Files = append(s.found.Files, info)
			}
		}
		if entry.Type()&fs.ModeDir != 0 && !slices.Contains(noFiles, path) {
			below = append(below, path)
		}
	}
	return below, false
}

// noFiles are directories whose names are no files of anybody.
var noFiles = []string{"/proc", "/sys", "/dev", "/.carrel"}
