package jupyter_test

import "testing"

// Debian's Python clients work unmodified: programs of one's own, and a Jupyter server that has its kernels at a gateway.
func TestDebianClients(t *testing.T) {
	python(t, newBox(t), "clients.py")
}
