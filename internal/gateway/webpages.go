package gateway

import (
	"cmp"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/web"
)

// webPath is every path of the browser's pages: one document, whose script shows what the path says.
var webPath = regexp.MustCompile(`^/(|new|nodes|account|boxes/[^/]+(/.*)?)$`)

// webPolicy lets pages run and load what the gateway serves and nothing else. Styles may stand in the page, as editors and terminals put them
// there; scripts may not, and text never becomes one. The origin also has what boxes answer (/jupyter/, /p/): programs and styles come from the folder
// of the pages' own alone, and frames from that of outputs. ASSETS and SANDBOX stand for these.
const webPolicy = "default-src 'none'; script-src ASSETS; style-src ASSETS 'unsafe-inline'; img-src 'self' data: blob:; font-src ASSETS data:; media-src 'self' data: blob:; " +
	"connect-src 'self'; worker-src 'none'; frame-src SANDBOX; form-action 'self'; base-uri 'none'; object-src 'none'; frame-ancestors 'none'"

// outputPage shows what a box wrote, scripts included, in a frame of a page; outputPolicy gives it an origin of its own wherever it is opened, and lets it
// load nothing from anywhere.
const (
	outputPage   = "/sandbox/output.html"
	outputPolicy = "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' data: blob:; style-src 'unsafe-inline' data:; img-src data: blob:; font-src data:; " +
		"media-src data: blob:; worker-src blob: data:; connect-src data: blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)

// plainHost is a host that can stand in a policy.
var plainHost = regexp.MustCompile(`^[A-Za-z0-9.-]+(:[0-9]{1,5})?$`)

// policy is webPolicy for the host by which a browser knows the front door.
func (p *ports) policy(r *http.Request) string {
	var hosts []string
	for _, host := range []string{r.Host, p.origin(r).Host} {
		if plainHost.MatchString(host) && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	at := func(folder string) string {
		if len(hosts) == 0 { // such as [::1], which a policy has no way to write
			return "'self'"
		}
		return strings.Join(hosts, folder+" ") + folder
	}
	return strings.NewReplacer("ASSETS", at("/assets/"), "SANDBOX", at("/sandbox/")).Replace(webPolicy)
}

// forPages reports whether a page of the front door's own origin loads something into itself: a script, a picture, a frame. What boxes answer at that
// origin is for programs, and for people who open it by itself.
func forPages(r *http.Request) bool {
	if r.Header.Get("Sec-Fetch-Site") != "same-origin" {
		return false
	}
	switch r.Header.Get("Sec-Fetch-Dest") {
	case "", "empty", "websocket", "document":
		return false
	}
	return true
}

func errNotForPages() *carrel.Error {
	return carrel.Errorf(carrel.CodeDenied, "not_for_pages", "what boxes answer under this origin is no part of its pages; programs may read it")
}

// serveWeb answers requests for the browser's pages and what they load. It reports whether the path is one of theirs.
func (g *Gateway) serveWeb(w http.ResponseWriter, r *http.Request) bool {
	name := r.URL.Path
	page := webPath.MatchString(name)
	if page {
		name = "/index.html"
	}
	file, ok := web.Open(name)
	if !ok && !page && !strings.HasPrefix(name, "/assets/") {
		return false
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		writeError(w, r, carrel.Errorf(carrel.CodeInvalid, "bad_method", "%s is a page: it can be read and nothing else", clip(r.URL.Path)))
		return true
	}
	switch {
	case !ok && page:
		writePage(w, http.StatusServiceUnavailable, messagePage{Title: "Carrel is running", Message: "Its pages were not built into this carreld: `make build` does that. The command line and the API work without them."})
		return true
	case !ok: // of another version: the page that asks is told, and not given another file
		w.Header().Set("Cache-Control", "no-store")
		writeError(w, r, carrel.NotFound("file", clip(name)))
		return true
	}
	if to := g.ports.home(r); page && to != nil && navigation(r) {
		http.Redirect(w, r, to.String(), http.StatusTemporaryRedirect)
		return true
	}
	h := w.Header()
	h.Set("Content-Security-Policy", g.ports.policy(r))
	if name == outputPage {
		h.Set("Content-Security-Policy", outputPolicy)
	}
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin") // nothing to others; with none at all, browsers hide where our own forms come from
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
	h.Set("Content-Type", file.ContentType)
	h.Add("Vary", "Accept-Encoding")
	h.Set("Cache-Control", "no-cache")
	if file.Immutable {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	content := file.Zipped
	if content != nil && acceptsGzip(r) {
		h.Set("Content-Encoding", "gzip")
	} else {
		var err error
		if content, err = file.Unzipped(); err != nil {
			writeError(w, r, own(r.Context(), g.log, h.Get(headerRequestID), err))
			return true
		}
	}
	h.Set("Content-Length", strconv.Itoa(len(content)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(content)
	}
	return true
}

func acceptsGzip(r *http.Request) bool {
	for part := range strings.SplitSeq(strings.Join(r.Header.Values("Accept-Encoding"), ","), ",") {
		coding, weight, _ := strings.Cut(part, ";")
		if coding = strings.TrimSpace(coding); strings.EqualFold(coding, "gzip") || coding == "*" {
			q, err := strconv.ParseFloat(strings.TrimPrefix(cmp.Or(strings.TrimSpace(weight), "q=1"), "q="), 64)
			return err == nil && q > 0
		}
	}
	return false
}

// home is where a browser should be instead: a sign-in is one host's alone, and ports lead back to the front door by its one name, so a browser on
// this machine uses that name from the first. nil: it is there already.
func (p *ports) home(r *http.Request) *url.URL {
	if p.gateway.public != nil {
		return nil
	}
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	origin := p.origin(r)
	if err != nil || !ip.IsLoopback() || origin.Hostname() != defaultPortDomain {
		return nil
	}
	to := *origin
	to.Path, to.RawPath, to.RawQuery = r.URL.Path, r.URL.RawPath, r.URL.RawQuery
	return &to
}
