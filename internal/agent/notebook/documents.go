package notebook

import (
	"context"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

type document struct{}

func (s *Service) document(context.Context, string) (*document, error) { return &document{}, nil }
func (s *Service) release(*document)                                   {}
func (s *Service) specOf(context.Context, string) (string, error)      { return "", nil }
func (d *document) toExecute(*carrelv1.ExecuteRequest) ([]*execution, error) {
	return nil, nil
}
func (s *Service) executionQueued(*execution)  {}
func (s *Service) executionStarted(*execution) {}
func (s *Service) touched(*execution)          {}
func (s *Service) executionEnded(e *execution) { s.remembered(e) }
func (s *Service) closeDocuments()             {}

func (s *Service) flushDocuments(context.Context) error { return nil }
func (s *Service) GetNotebook(context.Context, *carrelv1.GetNotebookRequest) (*carrelv1.Notebook, error) {
	return nil, nil
}
func (s *Service) EditNotebook(context.Context, *carrelv1.EditNotebookRequest, string) (*carrelv1.EditNotebookResponse, error) {
	return nil, nil
}
