package carreltest

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
)

// LoseAnswers lets the next n answers to a procedure, such as linkv1connect.NodeLinkCommitSnapshotProcedure, get lost after control
// has done what was asked. lost is called for each before its stream is reset.
func (s *Stack) LoseAnswers(procedure string, n int64, lost func()) {
	var left atomic.Int64
	left.Store(n)
	s.Between(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != procedure || left.Add(-1) < 0 {
				next.ServeHTTP(w, r)
				return
			}
			next.ServeHTTP(httptest.NewRecorder(), r)
			lost()
			panic(http.ErrAbortHandler)
		})
	})
}
