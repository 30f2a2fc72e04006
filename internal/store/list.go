package store

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

// ListBoxes is a list to ask for.
type ListBoxes struct {
	Org         carrel.OrgID // empty: every organisation of the scope
	State       []carrel.State
	Template    string
	Owner       carrel.UserID
	Name        string
	Labels      map[string]string
	OrderBy     string // name, create_time, update_time, each with " desc" if wanted; empty: create_time desc
	ShowDeleted bool
	Page        Page
}

const (
	// listChunk is how many rows are read at once when the state, which PostgreSQL does not know, is asked for.
	listChunk = 500
	// maxScan bounds how many rows are looked at for one page.
	maxScan = 5000
)

// ListBoxes gives one page and the token of the next, empty at the end. Pages neither repeat nor skip a box
// when others are made meanwhile. A page may be short, even empty, and have a next one.
func (s *Store) ListBoxes(ctx context.Context, scope Scope, list ListBoxes) ([]*Box, string, error) {
	size, err := list.Page.size()
	if err != nil {
		return nil, "", err
	}
	order, err := parseOrder(list.OrderBy)
	if err != nil {
		return nil, "", err
	}
	kind := list.kind(order)
	if list.Org == "" && !scope.Platform && len(scope.Orgs) == 1 {
		list.Org = scope.Orgs[0] // the same boxes, and there is an index for it
	}
	var start *cursor
	if list.Page.Token != "" {
		if start, err = parseCursor(list.Page.Token, kind); err != nil {
			return nil, "", err
		}
	}
	var boxes []*Box
	next := ""
	err = s.read(ctx, "ListBoxes", scope, func(t *tx) error {
		boxes, next = nil, ""
		chunk := size + 1
		if len(list.State) > 0 {
			chunk = max(chunk, listChunk)
		}
		for after, scanned := start, 0; ; {
			condition, args := list.condition(order, after, chunk)
			rows, err := t.boxes(ctx, condition, args...)
			if err != nil {
				return err
			}
			for _, box := range rows {
				if len(list.State) > 0 && !slices.Contains(list.State, carrel.StateOf(&box.BoxView)) {
					continue
				}
				if len(boxes) == size {
					next = order.cursorAt(boxes[size-1]).token(kind)
					return nil
				}
				boxes = append(boxes, box)
			}
			if len(rows) < chunk {
				return nil
			}
			after = order.cursorAt(rows[len(rows)-1])
			if scanned += len(rows); scanned >= maxScan {
				next = after.token(kind)
				return nil
			}
		}
	})
	return boxes, next, err
}

// condition is what selects one chunk. Columns come from a fixed table; every value is a parameter.
func (l *ListBoxes) condition(order listOrder, after *cursor, limit int) (string, []any) {
	var where []string
	var args []any
	add := func(format string, values ...any) {
		numbers := make([]any, len(values))
		for i, v := range values {
			args = append(args, v)
			numbers[i] = len(args)
		}
		where = append(where, fmt.Sprintf(format, numbers...))
	}
	if l.Org != "" {
		add("b.org_id = $%d", l.Org)
	}
	if l.Template != "" {
		add("t.name = $%d", l.Template)
	}
	if l.Owner != "" {
		add("b.owner_id = $%d", l.Owner)
	}
	if l.Name != "" {
		add("b.name = $%d", l.Name)
	}
	if len(l.Labels) > 0 {
		add("b.labels @> $%d::jsonb", string(encodeMap(l.Labels)))
	}
	where = append(where, "b.purpose = ''")
	if !l.ShowDeleted {
		where = append(where, "b.deleted_at is null")
	}
	direction, compare := "", ">"
	if order.desc {
		direction, compare = " desc", "<"
	}
	if after != nil {
		add("("+order.column+", b.id) "+compare+" ($%d::"+order.sqlType+", $%d::text)", after.value(order), after.ID)
	}
	text := ""
	if len(where) > 0 {
		text = "where " + strings.Join(where, " and ")
	}
	args = append(args, limit)
	return fmt.Sprintf("%s order by %s%s, b.id%s limit $%d", text, order.column, direction, direction, len(args)), args
}

// kind names a list, so that the token of one is not used for another.
func (l *ListBoxes) kind(order listOrder) string {
	copied := *l
	copied.Page, copied.OrderBy = Page{}, ""
	return fmt.Sprintf("boxes %s %v %s", order.column, order.desc, encode(copied))
}

type listOrder struct {
	column  string
	sqlType string
	desc    bool
}

func parseOrder(text string) (listOrder, error) {
	name, desc := strings.CutSuffix(strings.TrimSpace(text), " desc")
	switch strings.TrimSpace(name) {
	case "":
		return listOrder{column: "b.created_at", sqlType: "timestamptz", desc: true}, nil
	case "name":
		return listOrder{column: "b.name", sqlType: "text", desc: desc}, nil
	case "create_time":
		return listOrder{column: "b.created_at", sqlType: "timestamptz", desc: desc}, nil
	case "update_time":
		return listOrder{column: "b.updated_at", sqlType: "timestamptz", desc: desc}, nil
	}
	return listOrder{}, carrel.Errorf(carrel.CodeInvalid, "bad_order", "%q is no order; use name, create_time or update_time, with \" desc\" if wanted", text)
}

func (o listOrder) cursorAt(b *Box) *cursor {
	c := &cursor{ID: string(b.ID)}
	switch o.column {
	case "b.name":
		c.Text = b.Name
	case "b.created_at":
		c.At = b.CreatedAt
	default:
		c.At = b.UpdatedAt
	}
	return c
}

// cursor is the place of the last row of a page in the order of its list. It stays true whatever rows come or go.
type cursor struct {
	Kind   string    `json:"k"` // of the list, shortened
	ID     string    `json:"i,omitempty"`
	Text   string    `json:"t,omitempty"`
	At     time.Time `json:"a,omitzero"`
	Number int64     `json:"n,omitempty"`
}

func (c *cursor) value(o listOrder) any {
	if o.sqlType == "text" {
		return c.Text
	}
	return c.At
}

func shortKind(kind string) string {
	sum := sha256.Sum256([]byte(kind))
	return hex.EncodeToString(sum[:8])
}

func (c *cursor) token(kind string) string {
	c.Kind = shortKind(kind)
	return base64.RawURLEncoding.EncodeToString(encode(c))
}

func parseCursor(token, kind string) (*cursor, error) {
	bad := carrel.Errorf(carrel.CodeInvalid, "bad_page_token", "the page token does not belong to this list; begin again without one")
	if len(token) > 1024 {
		return nil, bad
	}
	data, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return nil, bad
	}
	var c cursor
	if err := json.Unmarshal(data, &c); err != nil || c.Kind != shortKind(kind) || clean(c.Text+c.ID, len(data)) != c.Text+c.ID {
		return nil, bad
	}
	return &c, nil
}

func (p Page) size() (int, error) {
	switch {
	case p.Size < 0:
		return 0, carrel.Errorf(carrel.CodeInvalid, "bad_page_size", "the page size is %d; it must be from 1 to %d", p.Size, carrel.MaxPageSize)
	case p.Size == 0:
		return carrel.DefaultPage, nil
	}
	return min(p.Size, carrel.MaxPageSize), nil
}

// numbered reads a page of a list whose rows have rising numbers, newest first: the size, and the number that they are below.
func (p Page) numbered(kind string) (size int, before int64, err error) {
	if size, err = p.size(); err != nil || p.Token == "" {
		return size, 0, err
	}
	c, err := parseCursor(p.Token, kind)
	if err != nil {
		return 0, 0, err
	}
	return size, c.Number, nil
}

func numberedToken(kind string, number int64) string { return (&cursor{Number: number}).token(kind) }
