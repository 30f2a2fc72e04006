package jupyter_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// JupyterLab's own client library works unmodified with kernels, sessions, contents and terminals, and comes back when
// connections break.
func TestJupyterLabServices(t *testing.T) {
	b := newBox(t)
	cut := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/gateway" {
			if err := b.Gateways[0].Kill(); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
			defer func() { _ = b.Gateways[0].Start() }()
		}
		b.Front.Cut()
	}))
	defer cut.Close()
	node(t, b, "services.mjs", "CUT="+cut.URL)
}
