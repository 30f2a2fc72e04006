package client

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
)

// Config of a Client.
type Config struct {
	Context
	// UserAgent is told to the server; empty: "carrel-client".
	UserAgent string
	// Dial connects to the gateway; nil: TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// OnAsleep hears, at the beginning of calls by Arriving, that the box (as the caller named it) does not run and is being woken; why says how it
	// is. It may be called from several goroutines, and again for the same box. nil: nobody does.
	OnAsleep func(box string, why error)
}

// Client speaks to one gateway as one user over one HTTP/2 connection (or a few). It is safe for
// concurrent use.
type Client struct {
	Boxes      carrelv1connect.BoxServiceClient
	Operations carrelv1connect.OperationServiceClient
	Templates  carrelv1connect.TemplateServiceClient
	Images     carrelv1connect.ImageServiceClient
	Orgs       carrelv1connect.OrgServiceClient
	Users      carrelv1connect.UserServiceClient
	Tokens     carrelv1connect.TokenServiceClient
	Nodes      carrelv1connect.NodeServiceClient
	// Ports leads browsers to the ports of boxes.
	Ports carrelv1connect.PortServiceClient
	// SSH keeps the keys by which users log in to boxes with SSH clients.
	SSH carrelv1connect.SSHServiceClient
	// Processes is the data plane; calls go with the API token unless their header has a bearer.
	Processes carrelv1connect.ProcessServiceClient
	Files     carrelv1connect.FileServiceClient
	// Notebooks runs code in kernels of boxes.
	Notebooks carrelv1connect.NotebookServiceClient

	url       string
	org       string
	http      *http.Client
	transport *http.Transport
	sockets   *http.Client // for WebSockets, which begin over HTTP/1.1
	now       func() time.Time
	tickets   ticketCache
	token     string
	tokenID   string
	onAsleep  func(string, error)
}

// TokenID is the id of the API token by which the client speaks; empty when it has none, or something else.
func (c *Client) TokenID() string { return c.tokenID }

// tokenID is the part of a token that is no secret: carrel_ID_SECRET.
func tokenID(token string) string {
	parts := strings.SplitN(token, "_", 3)
	if len(parts) != 3 || carrel.IDKind(parts[1]) != 't' {
		return ""
	}
	return parts[1]
}

// New makes a Client. It does not connect.
func New(config Config) (*Client, error) {
	u, err := ParseURL(config.URL)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout:     5 * time.Minute,
		MaxIdleConnsPerHost: 4,
		DisableCompression:  true,
		Protocols:           new(http.Protocols),
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream: 2 << 20,
			MaxReadFrameSize:          128 << 10,
			SendPingTimeout:           15 * time.Second,
			PingTimeout:               10 * time.Second,
		},
	}
	transport.DialContext = config.Dial
	if config.Dial == nil {
		transport.DialContext = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	}
	if u.Scheme == "http" {
		// By prior knowledge: the transport would otherwise speak HTTP/1.1, one call to a connection.
		transport.Protocols.SetUnencryptedHTTP2(true)
	} else {
		transport.Protocols.SetHTTP2(true)
		transport.Protocols.SetHTTP1(true)
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		if config.CAFile != "" {
			pool, err := readCAs(config.CAFile)
			if err != nil {
				return nil, err
			}
			transport.TLSClientConfig.RootCAs = pool
		}
	}
	c := &Client{
		tokenID:   tokenID(config.Token),
		url:       strings.TrimSuffix(u.String(), "/"),
		org:       config.Org,
		http:      &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		transport: transport,
		now:       config.Now,
		token:     config.Token,
		onAsleep:  config.OnAsleep,
	}
	if c.now == nil {
		c.now = time.Now
	}
	sockets := transport.Clone()
	sockets.HTTP2, sockets.Protocols = nil, new(http.Protocols)
	sockets.Protocols.SetHTTP1(true)
	c.sockets = &http.Client{Transport: sockets, CheckRedirect: c.http.CheckRedirect}
	agent := config.UserAgent
	if agent == "" {
		agent = "carrel-client"
	}
	options := []connect.ClientOption{
		connect.WithInterceptors(&interceptor{token: config.Token, org: config.Org, agent: agent, ends: c.tickets.drop}),
		connect.WithReadMaxBytes(64 << 20),
		// The network beneath is fast or compresses itself; output of commands is copied as it is.
		connect.WithAcceptCompression("gzip", nil, nil),
	}
	c.Boxes = carrelv1connect.NewBoxServiceClient(c.http, c.url, options...)
	c.Operations = carrelv1connect.NewOperationServiceClient(c.http, c.url, options...)
	c.Templates = carrelv1connect.NewTemplateServiceClient(c.http, c.url, options...)
	c.Images = carrelv1connect.NewImageServiceClient(c.http, c.url, options...)
	c.Orgs = carrelv1connect.NewOrgServiceClient(c.http, c.url, options...)
	c.Users = carrelv1connect.NewUserServiceClient(c.http, c.url, options...)
	c.Tokens = carrelv1connect.NewTokenServiceClient(c.http, c.url, options...)
	c.Nodes = carrelv1connect.NewNodeServiceClient(c.http, c.url, options...)
	c.SSH = carrelv1connect.NewSSHServiceClient(c.http, c.url, options...)
	c.Ports = carrelv1connect.NewPortServiceClient(c.http, c.url, options...)
	c.Processes = carrelv1connect.NewProcessServiceClient(c.http, c.url, options...)
	c.Files = carrelv1connect.NewFileServiceClient(c.http, c.url, options...)
	c.Notebooks = carrelv1connect.NewNotebookServiceClient(c.http, c.url, options...)
	return c, nil
}

func readCAs(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, &carrel.Error{Code: carrel.CodeInvalid, Reason: "bad_ca_file", Message: fmt.Sprintf("the file of trusted authorities cannot be read: %v", err), Cause: err}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_ca_file", "%s has no PEM certificate in it", path)
	}
	return pool, nil
}

// URL is the address that the client speaks to.
func (c *Client) URL() string { return c.url }

// Org is the organisation of the client's context, or "".
func (c *Client) Org() string { return c.org }

// Close ends the idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// ServerVersion asks the gateway what it is. It needs no token.
func (c *Client) ServerVersion(ctx context.Context) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, c.url+"/", nil)
	if err != nil {
		return "", fmt.Errorf("ask for the server's version: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return "", fmt.Errorf("ask for the server's version: %w", ctx.Err())
		}
		return "", &carrel.Error{Code: carrel.CodeUnavailable, Reason: ReasonUnreachable, Message: fmt.Sprintf("no connection to %s: %v", c.url, errors.Unwrap(err)), Cause: err}
	}
	defer resp.Body.Close()
	version, ok := strings.CutPrefix(resp.Header.Get("Server"), "carrel/")
	if !ok {
		return "", carrel.Errorf(carrel.CodePrecondition, "not_carrel", "what answers at %s is not a Carrel gateway", c.url)
	}
	return version, nil
}

// newRequestID makes a random id for a request that may be repeated.
func newRequestID() string { return rand.Text() }

// Ticket is the right to reach one box for a short time.
type Ticket struct {
	Box     string // id
	Token   string // the signed ticket; empty: the API token goes in its place
	Expires time.Time

	present bool // without a ticket: the caller comes to use the box
}

// ticketCache keeps the last ticket of each box. A ticket is asked for again when less than
// ticketMargin of it is left.
type ticketCache struct {
	mu      sync.Mutex
	tickets map[string]*ticketSlot
}

type ticketSlot struct {
	mu     sync.Mutex // held while a ticket is asked for, so that one question is asked for all
	ticket Ticket
}

const (
	ticketMargin = time.Minute
	maxTickets   = 4096
)

// drop forgets the ticket of a box whose run ends: it would be refused, and only then another be asked for.
func (t *ticketCache) drop(box string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.tickets, box)
}

func (t *ticketCache) slot(box string) *ticketSlot {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tickets == nil || len(t.tickets) >= maxTickets {
		t.tickets = map[string]*ticketSlot{}
	}
	slot := t.tickets[box]
	if slot == nil {
		slot = &ticketSlot{}
		t.tickets[box] = slot
	}
	return slot
}
