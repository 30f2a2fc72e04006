package e2e

import (
	"net/http"
	"testing"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/test/jupyter/corpus"
)

// In a real box, reached through every real part, clients of Jupyter see of a kernel what they see at a real Jupyter server.
func TestAJupyterServerInABoxAgreesWithARealOne(t *testing.T) {
	real := corpus.Real(t)
	s := newStack(t, options{images: "python"})
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	s.create("lab", func(r *carrelv1.CreateBoxRequest) { r.Template = "python" })
	corpus.Compare(t, real, corpus.Server{URL: s.url + "/jupyter/lab/", Token: s.token}, corpus.V1)
}
