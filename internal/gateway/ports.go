package gateway

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

// defaultPortDomain needs no DNS: browsers take every name under localhost for this machine.
const defaultPortDomain = "localhost"

const (
	// headerPortPass carries the pass of one port to the node's proxy instead of a ticket.
	headerPortPass = "Carrel-Port-Pass"
	// headerAuthorization is Authorization for port URLs, for requests whose own Authorization is meant for the box.
	headerAuthorization = "Carrel-Authorization"
	// headerPortHosts tells control where ports are, as the caller of the front door reaches them: scheme://*.domain[:port].
	headerPortHosts = "Carrel-Port-Hosts"
	// parameterToken carries the token of a signed URL.
	parameterToken = "carrel_token"
	// portPaths are kept from the box on the host of a port.
	portPaths = "/.carrel/"
	// pathPrefix is where ports are for token clients that have no use for wildcard names.
	pathPrefix = "/p/"
)

// reasonTargetRefused says that what was asked for in the box refused the connection.
const reasonTargetRefused = "target_refused"

const (
	visibilityOrg    = "org"
	visibilityPublic = "public"
)

// portRef names one TCP port of one box.
type portRef struct {
	Box  carrel.BoxID
	Port int // 1 to 65535
}

// target is whatever serves the port, wherever in the box it listens.
func (r portRef) target() string { return "port/" + strconv.Itoa(r.Port) }

// parsePort reads a port as it stands in a URL: digits only, without leading zeros, so that each port has one name.
func parsePort(text string) (int, bool) {
	if text == "" || text[0] < '1' || text[0] > '9' || len(text) > 5 {
		return 0, false
	}
	n, err := strconv.Atoi(text)
	return n, err == nil && n <= 65535
}

// portOfHost reads {port}-{box}.{domain}, with or without the port of the gateway itself.
func portOfHost(host, domain string) (portRef, bool) {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	label, ok := strings.CutSuffix(strings.ToLower(strings.TrimSuffix(host, ".")), "."+domain)
	if !ok {
		return portRef{}, false
	}
	number, box, _ := strings.Cut(label, "-")
	port, ok := parsePort(number)
	return portRef{Box: carrel.BoxID(box), Port: port}, ok && carrel.IDKind(box) == 'b'
}

// portOfPath reads /p/{box}/{port}/rest.
func portOfPath(path string) (ref portRef, rest string, ok bool) {
	text, ok := strings.CutPrefix(path, pathPrefix)
	if !ok {
		return portRef{}, "", false
	}
	box, text, _ := strings.Cut(text, "/")
	number, rest, slash := strings.Cut(text, "/")
	port, ok := parsePort(number)
	return portRef{Box: carrel.BoxID(box), Port: port}, "/" + rest, ok && slash && carrel.IDKind(box) == 'b'
}

// visitor is who asks for a port, and what opens it.
type visitor struct {
	pass pass
	user carrel.UserID // empty: nobody that is known
}

// ports serves the TCP ports of boxes over HTTP: every request is shown to be somebody's who may, and goes on to the box.
type ports struct {
	gateway *Gateway
	forward http.Handler
	recent  *recent
	used    *onceOnly
}

func newPorts(g *Gateway) *ports {
	p := &ports{gateway: g, recent: newRecent(), used: newOnceOnly()}
	p.forward = newPortForward(g)
	return p
}

// origin is the scheme and host of the front door, as the browser that sent a request knows it.
func (p *ports) origin(r *http.Request) *url.URL {
	if u := p.gateway.public; u != nil {
		return u
	}
	host := p.gateway.config.PortDomain
	if _, port, err := net.SplitHostPort(r.Host); err == nil {
		host = net.JoinHostPort(host, port)
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	return &url.URL{Scheme: scheme, Host: host}
}

// urlOf is where a port is found, by the front door's origin.
func (p *ports) urlOf(origin *url.URL, ref portRef) *url.URL {
	host := strconv.Itoa(ref.Port) + "-" + string(ref.Box) + "." + portDomainHost(p.gateway.config.PortDomain, origin)
	return &url.URL{Scheme: origin.Scheme, Host: host, Path: "/"}
}

// serveHost answers requests to {port}-{box}.{domain}.
func (p *ports) serveHost(w http.ResponseWriter, r *http.Request, ref portRef) {
	if strings.HasPrefix(r.URL.Path, portPaths) {
		p.finishSignIn(w, r, ref)
		return
	}
	who, err := p.identify(r, ref)
	if err != nil {
		p.refuse(w, r, ref, err)
		return
	}
	if token := r.URL.Query().Get(parameterToken); token != "" && navigation(r) {
		p.keepURLToken(w, r, ref, token)
		return
	}
	p.send(w, r, ref, who, r.URL.EscapedPath(), false)
}

// servePath answers requests to /p/{box}/{port}/. They share the origin of the platform: who asks shows a token each time, cookies are
// neither taken nor set, and what is answered cannot run as a page of that origin.
func (p *ports) servePath(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Security-Policy", "sandbox")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	ref, rest, ok := portOfPath(r.URL.EscapedPath())
	if !ok {
		writeError(w, r, carrel.Errorf(carrel.CodeNotFound, "bad_port_path", "a port of a box is at /p/BOX-ID/PORT/, and %s is none", clip(r.URL.Path)))
		return
	}
	if forPages(r) {
		p.answer(w, r, errNotForPages())
		return
	}
	who, err := p.byToken(r, ref)
	if err == nil && who == nil {
		err = errNoCredentials()
	}
	if err != nil {
		p.answer(w, r, err)
		return
	}
	p.send(w, r, ref, *who, rest, true)
}

// send passes a request on to the box.
func (p *ports) send(w http.ResponseWriter, r *http.Request, ref portRef, who visitor, path string, byPath bool) {
	g := p.gateway
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	release := g.guard(who.pass, cancel)
	defer release()
	if who.user != "" && p.counts(r, who.user, ref) {
		g.touch(who.pass, activityPort)
	}
	job := &portJob{ports: p, ref: ref, visitor: who, path: path, host: r.Host, byPath: byPath}
	p.forward.ServeHTTP(w, r.WithContext(context.WithValue(ctx, portJobKey{}, job)))
}

func errNoCredentials() *carrel.Error {
	return carrel.Errorf(carrel.CodeUnauthorized, "no_credentials",
		"this port is private: sign in with a browser, or send an API token or ticket as `Authorization: Bearer …` or `%s: Bearer …`", headerAuthorization)
}

// identify finds out who asks for a port. What a request shows by itself counts before what the browser adds.
func (p *ports) identify(r *http.Request, ref portRef) (visitor, error) {
	who, err := p.byToken(r, ref)
	if err != nil {
		return visitor{}, err
	}
	if who != nil {
		return *who, nil
	}
	rule, _ := p.gateway.routes.port(ref.Box, ref.Port)
	v, err := p.bySignIn(r, ref, rule)
	if err != nil && rule.Visibility == visibilityPublic {
		return p.anybody(ref, rule, "")
	}
	return v, err
}

// bySignIn is a user who signed in at the port's host. Browsers send the cookie by themselves, also when a page of somebody else's makes them ask:
// such a request does nothing, and wakes no box. What is opened ends with the sign-in and with the API token that was shown for it.
func (p *ports) bySignIn(r *http.Request, ref portRef, rule portRule) (visitor, error) {
	session, err := p.byCookie(r, ref)
	if err != nil {
		return visitor{}, err
	}
	if !p.ownPage(r, ref) {
		return visitor{}, carrel.Errorf(carrel.CodeDenied, "other_origin", "a page of another origin may not use your sign-in at this port; only pages of the same box may")
	}
	if session.Signed != "" {
		return p.byURLToken(r.Context(), r, session.Signed, ref)
	}
	v, err := p.visitorOf(r.Context(), r, session.User, ref, rule)
	v.pass.Token, v.pass.from = carrel.TokenID(session.Token), session.From
	return v, err
}

// visitorOf is a user who was signed in: whoever may use the box, or with the port's visibility every member of its organisation.
func (p *ports) visitorOf(ctx context.Context, r *http.Request, user carrel.UserID, ref portRef, rule portRule) (visitor, error) {
	opened, err := p.passTo(ctx, user, ref)
	switch code := carrel.CodeOf(err); {
	case err == nil:
		return visitor{pass: opened, user: user}, nil
	case code == carrel.CodeDenied && rule.Visibility == visibilityOrg:
		return p.anybody(ref, rule, user)
	case carrel.ReasonOf(err) == client.ReasonBoxNotRunning:
		if !p.counts(r, user, ref) {
			return visitor{}, err
		}
		opened, err = p.wake(ctx, user, ref)
		return visitor{pass: opened, user: user}, err
	}
	return visitor{}, err
}

// passTo is passOf for a box that may be unknown here: one that does not run, or whose route is only on its way.
func (p *ports) passTo(ctx context.Context, user carrel.UserID, ref portRef) (pass, error) {
	opened, err := p.gateway.passOf(user, ref.Box, auth.ScopeExec)
	if carrel.CodeOf(err) != carrel.CodeNotFound {
		return opened, err
	}
	if _, err := p.gateway.findBox(ctx, user, string(ref.Box), ""); err != nil {
		return pass{}, err
	}
	return p.gateway.passOf(user, ref.Box, auth.ScopeExec)
}

// wake starts or resumes a box for a request, as long as a browser waits patiently.
func (p *ports) wake(ctx context.Context, user carrel.UserID, ref portRef) (pass, error) {
	ctx, cancel := context.WithTimeout(ctx, wakePatience)
	defer cancel()
	box, err := p.gateway.findBox(ctx, user, string(ref.Box), "")
	if err != nil {
		return pass{}, err
	}
	return p.gateway.wake(ctx, user, box, "port", nil)
}

const wakePatience = 25 * time.Second

// anybody is a visitor who needs to be nobody in particular: the port's own pass opens it.
func (p *ports) anybody(ref portRef, rule portRule, user carrel.UserID) (visitor, error) {
	epoch := p.gateway.routes.epoch(ref.Box)
	if epoch == 0 || rule.JWT == "" {
		return visitor{}, errNotRunning(ref.Box, "")
	}
	signed, err := p.gateway.verifier.VerifyPort(rule.JWT, p.gateway.now())
	if err != nil {
		return visitor{}, err
	}
	if signed.Box != ref.Box || signed.Port != ref.Port {
		return visitor{}, errOtherBox(ref.Box)
	}
	return visitor{user: user, pass: pass{
		Ticket: auth.Ticket{Box: ref.Box, Org: signed.Org, Epoch: epoch, User: user, Scopes: []string{auth.ScopeView}, Expires: signed.Expires},
		header: headerPortPass, proof: rule.JWT, openPort: ref.Port,
	}}, nil
}

// byToken takes what a request itself shows: an API token or ticket in a header, or the token of a signed URL. An Authorization that is none
// of ours is the box's business. nil without an error: nothing was shown.
func (p *ports) byToken(r *http.Request, ref portRef) (*visitor, error) {
	g := p.gateway
	for _, name := range []string{headerAuthorization, "Authorization"} {
		value := r.Header.Get(name)
		if value == "" || name == "Authorization" && !p.ours(value) {
			continue
		}
		shown := http.Header{"Authorization": {value}}
		opened, err := g.allow(r.Context(), shown, string(ref.Box), "", auth.ScopeExec)
		if carrel.ReasonOf(err) == client.ReasonBoxNotRunning {
			if user := p.userOfBearer(r.Context(), value); user != "" && p.counts(r, user, ref) {
				opened, err = p.wake(r.Context(), user, ref)
				opened.Token = tokenOf(value)
			}
		}
		if code := carrel.CodeOf(err); code == carrel.CodeDenied || code == carrel.CodeNotFound {
			v, err := p.byVisibility(r.Context(), shown, ref, err)
			return v, err
		}
		if err != nil {
			return nil, err
		}
		return &visitor{pass: opened, user: opened.User}, nil
	}
	if text := r.URL.Query().Get(parameterToken); text != "" {
		v, err := p.byURLToken(r.Context(), r, text, ref)
		return &v, err
	}
	return nil, nil
}

// byVisibility lets through somebody who showed a token and may not use the box, where the port is for more people than that; else it answers
// refused.
func (p *ports) byVisibility(ctx context.Context, shown http.Header, ref portRef, refused error) (*visitor, error) {
	rule, _ := p.gateway.routes.port(ref.Box, ref.Port)
	var user carrel.UserID
	switch rule.Visibility {
	case visibilityPublic:
	case visibilityOrg:
		member, err := p.gateway.allow(ctx, shown, string(ref.Box), "", auth.ScopeView)
		if err != nil {
			return nil, refused
		}
		user = member.User
	default:
		return nil, refused
	}
	v, err := p.anybody(ref, rule, user)
	return &v, err
}

// ours reports whether an Authorization is meant for the platform and not for the program in the box.
func (p *ports) ours(value string) bool {
	scheme, bearer, _ := strings.Cut(value, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return false
	}
	bearer = strings.TrimSpace(bearer)
	if strings.HasPrefix(bearer, apiTokenPrefix) {
		return true
	}
	_, err := p.gateway.verifier.Verify(bearer, p.gateway.now())
	return err == nil || carrel.ReasonOf(err) == "ticket_expired"
}

// byURLToken opens a port with the token of a signed URL. It ends with its time and with the rights of the user who made it.
func (p *ports) byURLToken(ctx context.Context, r *http.Request, text string, ref portRef) (visitor, error) {
	g := p.gateway
	signed, err := g.verifier.VerifyPort(text, g.now())
	if err != nil {
		return visitor{}, err
	}
	if signed.Box != ref.Box || signed.Port != ref.Port || signed.User == "" {
		return visitor{}, carrel.Errorf(carrel.CodeDenied, "url_of_another_port", "this signed URL is for another port; ask for one of this port")
	}
	opened, err := p.passTo(ctx, signed.User, ref)
	if carrel.ReasonOf(err) == client.ReasonBoxNotRunning && p.counts(r, signed.User, ref) {
		opened, err = p.wake(ctx, signed.User, ref)
	}
	if err != nil {
		return visitor{}, err
	}
	opened.header, opened.proof, opened.Expires = headerPortPass, text, signed.Expires
	return visitor{pass: opened, user: signed.User}, nil
}

// ownPage reports whether a request with a cookie comes from the port itself, from another port of the same box, or from the user's
// own hand. Hosts of ports may be one site to browsers, which then send cookies along with requests of any of them.
func (p *ports) ownPage(r *http.Request, ref portRef) bool {
	if origin := r.Header.Get("Origin"); origin != "" {
		return p.sameBox(origin, ref)
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
		return true
	}
	return navigation(r) && !framed(r) || p.sameBox(r.Referer(), ref)
}

// framed reports whether a page is to be shown within another one, which could lead its user to press what they do not see.
func framed(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Dest") {
	case "", "document":
		return false
	}
	return true
}

// sameBox reports whether a URL is one of a port of the same box.
func (p *ports) sameBox(text string, ref portRef) bool {
	u, err := url.Parse(text)
	if err != nil {
		return false
	}
	from, ok := portOfHost(u.Host, p.gateway.config.PortDomain)
	return ok && from.Box == ref.Box
}

// navigation reports whether a request is a person going to a page, for whom a redirect or a page is an answer. Everything else is
// a program's, which would take the sign-in page for its data.
func navigation(r *http.Request) bool {
	if r.Method != http.MethodGet || r.Header.Get("Upgrade") != "" || r.Header.Get("X-Requested-With") != "" {
		return false
	}
	if mode := r.Header.Get("Sec-Fetch-Mode"); mode != "" {
		return mode == "navigate"
	}
	return r.Header.Get("Origin") == "" && strings.Contains(r.Header.Get("Accept"), "text/html")
}

// refuse answers a request that may not pass: a person who is not signed in is sent to do so, everybody else is told.
func (p *ports) refuse(w http.ResponseWriter, r *http.Request, ref portRef, err error) {
	if carrel.CodeOf(err) == carrel.CodeUnauthorized && navigation(r) && carrel.ReasonOf(err) == "no_credentials" {
		to := p.urlOf(p.origin(r), ref)
		to.Path, to.RawQuery = r.URL.Path, r.URL.RawQuery
		sign := p.origin(r).JoinPath("/signin/port")
		sign.RawQuery = url.Values{"url": {to.String()}}.Encode()
		w.Header().Set("Cache-Control", "no-store")
		http.Redirect(w, r, sign.String(), http.StatusFound)
		return
	}
	p.answer(w, r, err)
}

// answer says why a request was not passed on: as a page to a person, as JSON that any page may read to a program.
func (p *ports) answer(w http.ResponseWriter, r *http.Request, err error) {
	e := own(r.Context(), p.gateway.log, r.Header.Get(headerRequestID), err)
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		w.WriteHeader(499) // nobody reads it
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	if navigation(r) {
		writePage(w, httpStatus(e.Code), messagePage{Title: pageTitle(e), Message: e.Message, Request: r.Header.Get(headerRequestID)})
		return
	}
	if origin := r.Header.Get("Origin"); origin != "" {
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", origin)
		h.Set("Access-Control-Allow-Credentials", "true")
		h.Add("Vary", "Origin")
	}
	writeError(w, r, e)
}

func pageTitle(e *carrel.Error) string {
	switch {
	case e.Reason == reasonTargetRefused:
		return "Nothing answers on this port"
	case e.Reason == client.ReasonBoxNotRunning:
		return "This box is not running"
	case e.Code == carrel.CodeNotFound, e.Code == carrel.CodeDenied:
		return "There is nothing here for you"
	}
	return "That did not work"
}

// portDomainHost is the domain of ports with the gateway's own port, as it stands in URLs.
func portDomainHost(domain string, origin *url.URL) string {
	if port := origin.Port(); port != "" {
		return net.JoinHostPort(domain, port)
	}
	return domain
}

// tokenOf is the id of an API token that a request shows; empty: it shows none.
func tokenOf(value string) carrel.TokenID {
	_, text, _ := strings.Cut(value, " ")
	token, _ := auth.ParseToken(strings.TrimSpace(text))
	return token.ID
}

// userOfBearer finds the user of an API token; empty: not to be had.
func (p *ports) userOfBearer(ctx context.Context, value string) carrel.UserID {
	_, token, _ := strings.Cut(value, " ")
	if !strings.HasPrefix(strings.TrimSpace(token), apiTokenPrefix) {
		return ""
	}
	req := connect.NewRequest(&carrelv1.WhoAmIRequest{})
	req.Header().Set("Authorization", value)
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	users := carrelv1connect.NewUserServiceClient(&http.Client{Transport: p.gateway.users}, p.gateway.url.String(), connect.WithReadMaxBytes(1<<20))
	resp, err := users.WhoAmI(ctx, req)
	if err != nil {
		return ""
	}
	return carrel.UserID(resp.Msg.GetUser().GetId())
}
