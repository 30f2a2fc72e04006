package gateway

import (
	"bytes"
	_ "embed"
	"html/template"
	"net/http"
)

//go:embed pages.html
var pagesText string

// pages are the few pages that the front door makes itself.
var pages = template.Must(template.New("pages").Parse(pagesText))

// messagePage tells a person one thing.
type messagePage struct {
	Title, Message string
	Request        string // id; may be empty
}

// signInPage asks for an API token, or shows who is signed in.
type signInPage struct {
	Next    string // path to go on to
	Problem string
	User    string // name; empty: nobody is signed in
	// Forms may lead on to the hosts of ports: a browser counts redirects after a form as the form's.
	PortHosts string
}

// linkPage asks whether a link may sign this browser in.
type linkPage struct {
	Link, Next string
	User       string // name of who would be signed in
	Instead    string // name of who is now; empty: nobody
	PortHosts  string
}

// onwardPage goes on to a path of the front door by itself.
type onwardPage struct{ To string }

func (messagePage) name() string { return "message" }
func (linkPage) name() string    { return "link" }
func (onwardPage) name() string  { return "onward" }
func (signInPage) name() string  { return "signin" }

// writePage answers with a page. It loads nothing and runs nothing.
func writePage(w http.ResponseWriter, status int, page interface{ name() string }) {
	var text bytes.Buffer
	if err := pages.ExecuteTemplate(&text, page.name(), page); err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError) // a fault of the build
		return
	}
	forms := "'self'"
	switch page := page.(type) {
	case signInPage:
		forms += " " + page.PortHosts
	case linkPage:
		forms += " " + page.PortHosts
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action "+forms+"; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin") // nothing to others; with none at all, browsers hide where our own forms come from
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(text.Bytes())
}
