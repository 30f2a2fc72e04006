package corpus

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coder/websocket"
)

// V1 is the newer protocol of the WebSocket.
const V1 = "v1.kernel.websocket.jupyter.org"

// Server is where a Jupyter server is: its base address with a slash at its end, and its token.
type Server struct{ URL, Token string }

// Do makes a request and decodes the JSON of the answer into out, if that is not nil. Every status but 2xx is an error.
func (s Server) Do(ctx context.Context, method, path string, body, out any) error {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return err
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, s.URL+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "token "+s.Token)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, answer)
	}
	if out == nil || len(answer) == 0 {
		return nil
	}
	return json.Unmarshal(answer, out)
}

// Message is one message on a channel.
type Message struct {
	Channel                           string
	Header, Parent, Metadata, Content map[string]any
	Buffers                           [][]byte
}

func (m Message) kind() string   { return text(m.Header["msg_type"]) }
func (m Message) parent() string { return text(m.Parent["msg_id"]) }

func text(value any) string {
	s, _ := value.(string)
	return s
}

// Client is a connection to a kernel.
type Client struct {
	server   Server
	kernel   string
	session  string
	protocol string
	conn     *websocket.Conn
}

// Connect opens the channels of a kernel. An empty protocol is the older one.
func (s Server) Connect(ctx context.Context, kernel, session, protocol string) (*Client, error) {
	options := &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"token " + s.Token}}, CompressionMode: websocket.CompressionDisabled}
	if protocol != "" {
		options.Subprotocols = []string{protocol}
	}
	address := "ws" + strings.TrimPrefix(s.URL, "http") + "api/kernels/" + kernel + "/channels?session_id=" + url.QueryEscape(session)
	conn, _, err := websocket.Dial(ctx, address, options) //nolint:bodyclose // the library has it
	if err != nil {
		return nil, fmt.Errorf("connect to a kernel: %w", err)
	}
	conn.SetReadLimit(256 << 20)
	if conn.Subprotocol() != protocol {
		return nil, fmt.Errorf("the server speaks %q and not %q", conn.Subprotocol(), protocol)
	}
	return &Client{server: s, kernel: kernel, session: session, protocol: protocol, conn: conn}, nil
}

// Close ends the connection without a word, as a lost network does.
func (c *Client) Close() { _ = c.conn.CloseNow() }

// Header makes the header of a message.
func (c *Client) Header(kind string) map[string]any {
	return map[string]any{
		"msg_id": strings.ToLower(rand.Text()), "msg_type": kind, "session": c.session, "username": "someone",
		"date": time.Now().UTC().Format("2006-01-02T15:04:05.000000Z"), "version": "5.3",
	}
}

// Send sends a message and gives its header.
func (c *Client) Send(ctx context.Context, m Message) error {
	for _, part := range []*map[string]any{&m.Parent, &m.Metadata, &m.Content} {
		if *part == nil {
			*part = map[string]any{}
		}
	}
	if c.protocol == V1 {
		return c.sendV1(ctx, m)
	}
	whole := map[string]any{"channel": m.Channel, "header": m.Header, "parent_header": m.Parent, "metadata": m.Metadata, "content": m.Content}
	if len(m.Buffers) == 0 {
		whole["buffers"] = []any{}
	}
	data, err := json.Marshal(whole)
	if err != nil {
		return err
	}
	if len(m.Buffers) == 0 {
		return c.conn.Write(ctx, websocket.MessageText, data)
	}
	parts := append([][]byte{data}, m.Buffers...)
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(parts)))
	at := 4 * (1 + len(parts))
	for _, part := range parts {
		frame = binary.BigEndian.AppendUint32(frame, uint32(at))
		at += len(part)
	}
	return c.conn.Write(ctx, websocket.MessageBinary, append(frame, bytes.Join(parts, nil)...))
}

func (c *Client) sendV1(ctx context.Context, m Message) error {
	parts := [][]byte{[]byte(m.Channel)}
	for _, part := range []map[string]any{m.Header, m.Parent, m.Metadata, m.Content} {
		data, err := json.Marshal(part)
		if err != nil {
			return err
		}
		parts = append(parts, data)
	}
	parts = append(parts, m.Buffers...)
	frame := binary.LittleEndian.AppendUint64(nil, uint64(len(parts)+1))
	at := 8 * (2 + len(parts))
	for _, part := range parts {
		frame = binary.LittleEndian.AppendUint64(frame, uint64(at))
		at += len(part)
	}
	frame = binary.LittleEndian.AppendUint64(frame, uint64(at))
	return c.conn.Write(ctx, websocket.MessageBinary, append(frame, bytes.Join(parts, nil)...))
}

var errForm = errors.New("a frame that is no message")

// Receive waits for the next message.
func (c *Client) Receive(ctx context.Context) (Message, error) {
	kind, frame, err := c.conn.Read(ctx)
	if err != nil {
		return Message{}, err
	}
	if c.protocol == V1 {
		return parseV1(frame)
	}
	var buffers [][]byte
	if kind == websocket.MessageBinary {
		if len(frame) < 8 {
			return Message{}, errForm
		}
		n := int(binary.BigEndian.Uint32(frame))
		at := func(i int) int {
			if i == n {
				return len(frame)
			}
			return int(binary.BigEndian.Uint32(frame[4*(i+1):]))
		}
		for i := 1; i < n; i++ {
			buffers = append(buffers, frame[at(i):at(i+1)])
		}
		frame = frame[at(0):at(1)]
	}
	var whole struct {
		Channel  string         `json:"channel"`
		Header   map[string]any `json:"header"`
		Parent   map[string]any `json:"parent_header"`
		Metadata map[string]any `json:"metadata"`
		Content  map[string]any `json:"content"`
		ID       string         `json:"msg_id"`
		Type     string         `json:"msg_type"`
		Buffers  []any          `json:"buffers"`
	}
	if err := decode(frame, &whole); err != nil {
		return Message{}, err
	}
	if whole.ID != text(whole.Header["msg_id"]) || whole.Type != text(whole.Header["msg_type"]) || (kind == websocket.MessageText) != (whole.Buffers != nil) {
		return Message{}, errForm
	}
	return Message{Channel: whole.Channel, Header: whole.Header, Parent: whole.Parent, Metadata: whole.Metadata, Content: whole.Content, Buffers: buffers}, nil
}

func parseV1(frame []byte) (Message, error) {
	if len(frame) < 8 {
		return Message{}, errForm
	}
	n := int(binary.LittleEndian.Uint64(frame))
	part := func(i int) []byte {
		return frame[binary.LittleEndian.Uint64(frame[8*(i+1):]):binary.LittleEndian.Uint64(frame[8*(i+2):])]
	}
	if n < 6 || len(frame) < 8*(n+1) {
		return Message{}, errForm
	}
	m := Message{Channel: string(part(0))}
	for i, into := range []*map[string]any{&m.Header, &m.Parent, &m.Metadata, &m.Content} {
		if err := decode(part(i+1), into); err != nil {
			return Message{}, err
		}
	}
	for i := 5; i < n-1; i++ {
		m.Buffers = append(m.Buffers, part(i))
	}
	return m, nil
}

// decode keeps numbers as they are written.
func decode(data []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	return decoder.Decode(into)
}
