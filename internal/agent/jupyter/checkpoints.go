package jupyter

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

const (
	// checkpointDir is beside a file; checkpointID is the one that clients make.
	checkpointDir = ".ipynb_checkpoints"
	checkpointID  = "checkpoint"
)

var checkpointPath = regexp.MustCompile(`(?s)^(.+)/checkpoints(?:/([\w-]{1,64}))?$`)

// cutCheckpoint finds the file, and the checkpoint if one is named, of a path for checkpoints.
func cutCheckpoint(apiPath string) (of, id string, ok bool) {
	parts := checkpointPath.FindStringSubmatch(apiPath)
	if parts == nil {
		return "", "", false
	}
	return parts[1], parts[2], true
}

// checkpointPlace is where a file's checkpoint is.
func (s *Server) checkpointPlace(full, id string) string {
	dir, name := filepath.Split(full)
	ext := filepath.Ext(name)
	if ext == name { // a name that begins with its only dot has no ending
		ext = ""
	}
	return filepath.Join(dir, checkpointDir, strings.TrimSuffix(name, ext)+"-"+id+ext)
}

// makeCheckpoint copies a file. For AsUser.
func makeCheckpoint(full, checkpoint string) error {
	if err := os.MkdirAll(filepath.Dir(checkpoint), 0o755); err != nil {
		return err
	}
	return copyFile(full, checkpoint)
}

type checkpointModel struct {
	ID           string `json:"id"`
	LastModified string `json:"last_modified"`
}

func describeCheckpoint(path, id string) (*checkpointModel, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	return &checkpointModel{ID: id, LastModified: timestamp(info.ModTime())}, nil
}

// checkpoints answers what concerns the checkpoints of a file.
func (s *Server) checkpoints(in *request, of, id string) error {
	if hidden(of) {
		return refuse(http.StatusNotFound, "file or directory '%s' does not exist", clip(of))
	}
	missing := refuse(http.StatusNotFound, "Checkpoint does not exist: %s@%s", clip(of), id)
	status := http.StatusNoContent
	var answer any
	err := s.config.AsUser(in.Context(), func() error {
		full, err := s.place(of)
		if err != nil {
			return err
		}
		checkpoint := s.checkpointPlace(full, id)
		switch {
		case id == "" && (in.Method == http.MethodGet || in.Method == http.MethodHead):
			list := []*checkpointModel{}
			one, err := describeCheckpoint(s.checkpointPlace(full, checkpointID), checkpointID)
			if err == nil {
				list = append(list, one)
			} else if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			status, answer = http.StatusOK, list
			return nil
		case id == "" && in.Method == http.MethodPost:
			checkpoint = s.checkpointPlace(full, checkpointID)
			if err := makeCheckpoint(full, checkpoint); err != nil {
				return err
			}
			one, err := describeCheckpoint(checkpoint, checkpointID)
			status, answer = http.StatusCreated, one
			return err
		case id == "":
			return refuse(http.StatusMethodNotAllowed, "Method Not Allowed")
		case !isFile(checkpoint):
			return missing
		case in.Method == http.MethodPost:
			return copyFile(checkpoint, full)
		case in.Method == http.MethodDelete:
			return os.Remove(checkpoint)
		}
		return refuse(http.StatusMethodNotAllowed, "Method Not Allowed")
	})
	switch {
	case err != nil:
		return err
	case answer == nil:
		in.w.WriteHeader(status)
		return nil
	case status == http.StatusCreated:
		in.w.Header().Set("Location", in.base+"api/contents/"+escapePath(of)+"/checkpoints/"+checkpointID)
	}
	in.reply(status, answer)
	return nil
}
