package agent

import (
	"container/heap"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	defaultFilePage = 1000
	maxFilePage     = 10_000
	// maxPageBytes bounds the names in one page, in bytes.
	maxPageBytes = 1 << 20
	readBatch    = 1024
)

// greatestFirst is a heap of names.
type greatestFirst []string

func (h greatestFirst) Len() int           { return len(h) }
func (h greatestFirst) Less(i, j int) bool { return h[i] > h[j] }
func (h greatestFirst) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *greatestFirst) Push(x any)        { *h = append(*h, x.(string)) }
func (h *greatestFirst) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// List gives a page of a directory by name. The token is the last name of the page before, so that what is there the whole time is
// listed exactly once, whatever comes and goes. Each page reads the whole directory but keeps no more than a page of it.
func (s *fileService) List(ctx context.Context, request *connect.Request[carrelv1.ListFilesRequest]) (*connect.Response[carrelv1.ListFilesResponse], error) {
	path, err := s.path(request.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	size := int(request.Msg.GetPageSize())
	switch {
	case size < 0:
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_page_size", "the page size %d is negative", size)
	case size == 0:
		size = defaultFilePage
	}
	size = min(size, maxFilePage)
	response := &carrelv1.ListFilesResponse{}
	err = s.asUser(ctx, func() error {
		names, more, err := pageOf(ctx, path, carrel.DecodeFileName(request.Msg.GetPageToken()), size)
		if err != nil {
			return fileError("list", path, err)
		}
		bytes := 0
		for i, name := range names {
			if bytes += len(path) + len(name); bytes > maxPageBytes && i > 0 {
				names, more = names[:i], true
				break
			}
			one, err := stat(filepath.Join(path, name))
			if carrel.CodeOf(err) == carrel.CodeNotFound {
				continue // it went away
			}
			if err != nil {
				return err
			}
			bytes += len(one.GetTarget())
			response.Files = append(response.Files, one)
		}
		if more {
			response.NextPageToken = carrel.EncodeFileName(names[len(names)-1])
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(response), nil
}

// pageOf gives the first names after a name, and whether there are more.
func pageOf(ctx context.Context, path, after string, size int) ([]string, bool, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, false, err
	}
	defer dir.Close()
	var page greatestFirst
	more := false
	for {
		names, err := dir.Readdirnames(readBatch)
		for _, name := range names {
			switch {
			case name <= after:
			case len(page) < size:
				heap.Push(&page, name)
			case name < page[0]:
				page[0] = name
				heap.Fix(&page, 0)
				more = true
			default:
				more = true
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, false, err
		}
		if ctx.Err() != nil {
			return nil, false, ctx.Err()
		}
	}
	slices.Sort(page)
	return page, more, nil
}

func (s *fileService) MakeDirectory(ctx context.Context, request *connect.Request[carrelv1.MakeDirectoryRequest]) (*connect.Response[carrelv1.FileInfo], error) {
	path, err := s.path(request.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	mode, err := fileMode(request.Msg.GetMode())
	if err != nil {
		return nil, err
	}
	if mode == 0 {
		mode = 0o755
	}
	return s.answer(ctx, func() (*carrelv1.FileInfo, error) {
		if request.Msg.GetParents() {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return nil, fileError("make the directory of", path, err)
			}
		}
		err := os.Mkdir(path, 0o755)
		if errors.Is(err, fs.ErrExist) && request.Msg.GetParents() {
			if info, statErr := os.Stat(path); statErr == nil && info.IsDir() {
				return stat(path)
			}
		}
		if err == nil {
			err = os.Chmod(path, mode)
		}
		if err != nil {
			return nil, fileError("make", path, err)
		}
		return stat(path)
	})
}

func (s *fileService) Remove(ctx context.Context, request *connect.Request[carrelv1.RemoveFileRequest]) (*connect.Response[carrelv1.RemoveFileResponse], error) {
	path, err := s.path(request.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if path == "/" || path == filepath.Clean(s.a.config.Home) {
		return nil, carrel.Errorf(carrel.CodePrecondition, "file_busy", "%q is not removed; name what is in it", path)
	}
	err = s.asUser(ctx, func() error {
		if _, err := os.Lstat(path); err != nil {
			return fileError("remove", path, err)
		}
		if request.Msg.GetRecursive() {
			return fileError("remove", path, os.RemoveAll(path)) // of links it removes the link
		}
		return fileError("remove", path, os.Remove(path))
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&carrelv1.RemoveFileResponse{}), nil
}
