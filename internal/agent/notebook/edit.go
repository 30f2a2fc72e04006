package notebook

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strconv"

	"google.golang.org/protobuf/types/known/structpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	maxEdits  = 10_000
	maxClient = 64
	maxSource = 16 << 20
)

// EditNotebook changes a notebook, or makes it. user is who asks.
func (s *Service) EditNotebook(ctx context.Context, request *carrelv1.EditNotebookRequest, user string) (*carrelv1.EditNotebookResponse, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	switch {
	case request.GetPath() == "":
		return nil, carrel.Errorf(carrel.CodeInvalid, "no_path", "the request names no notebook")
	case len(request.GetEdits()) > maxEdits:
		return nil, carrel.Errorf(carrel.CodeInvalid, "too_many_edits", "the request has %d edits; at most %d are taken", len(request.GetEdits()), maxEdits)
	case len(request.GetClient()) > maxClient:
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_client", "the client's name has %d bytes; at most %d are taken", len(request.GetClient()), maxClient)
	case len(request.GetRequestId()) > 128:
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_request_id", "the request id has %d bytes; at most 128 are taken", len(request.GetRequestId()))
	case request.GetRequestId() == "":
		return s.edit(ctx, request, user)
	}
	id := "edit " + request.GetRequestId()
	entry, first := s.request(id)
	if first {
		entry.edit, entry.err = s.edit(ctx, request, user)
		s.answered(id, entry)
		return entry.edit, entry.err
	}
	select {
	case <-entry.ready:
		return entry.edit, entry.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *Service) edit(ctx context.Context, request *carrelv1.EditNotebookRequest, user string) (*carrelv1.EditNotebookResponse, error) {
	path, err := s.path(request.GetPath())
	if err != nil {
		return nil, err
	}
	d, err := s.document(ctx, path)
	if request.GetCreate() && carrel.ReasonOf(err) == "file_not_found" {
		d, err = s.openDocument(ctx, path, func(d *document) error { return d.create(request.GetKernelSpec()) })
	}
	if err != nil {
		return nil, err
	}
	defer s.release(d)
	d.saving.Lock()
	err = d.refresh()
	d.saving.Unlock()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fileError("write", path, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	next := &content{metadata: d.content.metadata, extra: d.content.extra, minor: d.content.minor, cells: slices.Clone(d.content.cells)}
	for _, edit := range request.GetEdits() {
		if err := next.edit(edit, d); err != nil {
			return nil, err
		}
	}
	if len(request.GetEdits()) == 0 {
		return &carrelv1.EditNotebookResponse{Revision: d.revision, Cursor: s.journal.Last()}, nil
	}
	d.content = next
	for _, edit := range request.GetEdits() {
		d.applied(edit)
	}
	d.revision++
	d.changed(saveLater)
	cursor := s.emit(&carrelv1.NotebookEvent{Path: d.path, Event: &carrelv1.NotebookEvent_Edited{Edited: &carrelv1.NotebookEdited{
		Revision: d.revision, Edits: request.GetEdits(), Client: request.GetClient(), User: user,
	}}})
	return &carrelv1.EditNotebookResponse{Revision: d.revision, Cursor: cursor}, nil
}

// applied does what an edit does to more than the content. Service.mu is held.
func (d *document) applied(edit *carrelv1.NotebookEdit) {
	switch {
	case edit.GetRemove() != "":
		delete(d.outputsOf, edit.GetRemove())
	case edit.GetType() != nil && edit.GetType().GetType() != "code":
		delete(d.outputsOf, edit.GetType().GetCell())
	case edit.GetClearOutputs() != "":
		// What runs goes on into the same cell, without what it has shown so far.
		for id, e := range d.outputsOf {
			if (id == edit.GetClearOutputs() || edit.GetClearOutputs() == "*") && !e.ended() {
				e.outputs.clear(false)
			}
		}
	}
}

// create makes the file of a new notebook.
func (d *document) create(wanted string) error {
	specs, byDefault, err := d.s.config.Kernels.Specs()
	if err != nil {
		return err
	}
	if wanted == "" {
		wanted = byDefault
	}
	c := &content{metadata: map[string]any{}, extra: map[string]any{}, minor: "5"}
	for _, spec := range specs {
		if spec.Name == wanted {
			c.metadata["kernelspec"] = map[string]any{"name": spec.Name, "display_name": spec.DisplayName, "language": spec.Language}
			c.metadata["language_info"] = map[string]any{"name": spec.Language}
		}
	}
	if wanted != "" && len(c.metadata) == 0 {
		return carrel.Errorf(carrel.CodeNotFound, "kernelspec_not_found", "the box has no kernel %q", cutText(wanted, 64))
	}
	d.saving.Lock()
	defer d.saving.Unlock()
	data := c.write()
	if err := d.write(data, sha256.Sum256(data)); err != nil {
		return fileError("write", d.path, err)
	}
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	d.content, d.sum = c, d.file.hash
	return nil
}

// edit does one edit. Cells are replaced, not changed, so that those of before are good if a later edit is refused.
func (c *content) edit(edit *carrelv1.NotebookEdit, d *document) error {
	switch edit := edit.GetEdit().(type) {
	case *carrelv1.NotebookEdit_Insert:
		return c.insert(edit.Insert)
	case *carrelv1.NotebookEdit_Remove:
		at, err := c.place(edit.Remove)
		if err != nil {
			return err
		}
		c.cells = slices.Delete(c.cells, at, at+1)
	case *carrelv1.NotebookEdit_Move:
		return c.move(edit.Move.GetCell(), edit.Move.GetAfter())
	case *carrelv1.NotebookEdit_Source:
		return c.setSource(edit.Source)
	case *carrelv1.NotebookEdit_Type:
		return c.setType(edit.Type.GetCell(), edit.Type.GetType())
	case *carrelv1.NotebookEdit_Metadata:
		return c.change(edit.Metadata.GetCell(), func(one *cell) { one.metadata = fromStruct(edit.Metadata.GetMetadata()) })
	case *carrelv1.NotebookEdit_ClearOutputs:
		return c.clearOutputs(edit.ClearOutputs, d)
	case *carrelv1.NotebookEdit_NotebookMetadata:
		c.metadata = fromStruct(edit.NotebookMetadata)
	default:
		return carrel.Errorf(carrel.CodeInvalid, "bad_edit", "an edit says nothing that is to be done")
	}
	return nil
}

func (c *content) place(id string) (int, error) {
	at := c.find(id)
	if at < 0 {
		return 0, cellNotFound(id)
	}
	return at, nil
}

// behind gives the place behind a cell; the first for no cell.
func (c *content) behind(id string) (int, error) {
	if id == "" {
		return 0, nil
	}
	at, err := c.place(id)
	return at + 1, err
}

func (c *content) insert(edit *carrelv1.InsertCell) error {
	at, err := c.behind(edit.GetAfter())
	if err != nil {
		return err
	}
	if len(c.cells) >= maxNotebookCells {
		return carrel.Errorf(carrel.CodeExhausted, "too_many_cells", "the notebook has %d cells; no more fit", len(c.cells))
	}
	fields := fromStruct(edit.GetCell())
	var done repairs
	one := parseCell(fields, &done)
	kind, _ := fields["cell_type"].(string)
	if kind != one.kind {
		return carrel.Errorf(carrel.CodeInvalid, "bad_cell", "a cell is to be inserted that is neither code, markdown nor raw")
	}
	if len(one.source) > maxSource {
		return sourceTooLarge(one.source)
	}
	if one.id == "" {
		one.id = newCellID()
		edit.Cell.Fields["id"] = structpb.NewStringValue(one.id) // for those who are told
	}
	if !cellID.MatchString(one.id) {
		return carrel.Errorf(carrel.CodeInvalid, "bad_cell", "the id of a cell has 1 to 64 of a-z, A-Z, 0-9, - and _")
	}
	if c.find(one.id) >= 0 {
		e := carrel.Errorf(carrel.CodeExists, "cell_exists", "the notebook has a cell %q already", one.id)
		e.Metadata = map[string]string{"cell": one.id}
		return e
	}
	c.cells = slices.Insert(c.cells, at, one)
	return nil
}

func (c *content) move(id, after string) error {
	from, err := c.place(id)
	if err != nil {
		return err
	}
	if id == after {
		return carrel.Errorf(carrel.CodeInvalid, "bad_edit", "a cell cannot be moved behind itself")
	}
	one := c.cells[from]
	rest := slices.Delete(slices.Clone(c.cells), from, from+1)
	moved := &content{cells: rest}
	at, err := moved.behind(after)
	if err != nil {
		return err
	}
	c.cells = slices.Insert(rest, at, one)
	return nil
}

func sourceTooLarge(source string) error {
	return carrel.Errorf(carrel.CodeInvalid, "source_too_large", "a cell has %d bytes of text; at most %d are taken", len(source), maxSource)
}

func (c *content) setSource(edit *carrelv1.SetCellSource) error {
	at, err := c.place(edit.GetCell())
	if err != nil {
		return err
	}
	if len(edit.GetSource()) > maxSource {
		return sourceTooLarge(edit.GetSource())
	}
	if now := c.cells[at].source; edit.Expected != nil && now != edit.GetExpected() && now != edit.GetSource() {
		return cellChanged(edit.GetCell())
	}
	return c.change(edit.GetCell(), func(one *cell) { one.source = edit.GetSource() })
}

// change replaces a cell with a changed one.
func (c *content) change(id string, f func(*cell)) error {
	at, err := c.place(id)
	if err != nil {
		return err
	}
	changed := *c.cells[at]
	f(&changed)
	c.cells[at] = &changed
	return nil
}

func (c *content) setType(id, kind string) error {
	switch kind {
	case "code", "markdown", "raw":
	default:
		return carrel.Errorf(carrel.CodeInvalid, "bad_cell", "a cell is code, markdown or raw, not %q", cutText(kind, 32))
	}
	return c.change(id, func(one *cell) {
		if one.kind == kind {
			return
		}
		one.kind, one.outputs, one.count = kind, nil, nil
		if kind == "code" {
			one.outputs = &outputs{}
			one.extra = maps.Clone(one.extra)
			delete(one.extra, "attachments")
		}
	})
}

func (c *content) clearOutputs(id string, d *document) error {
	all := []string{id}
	if id == "*" {
		all = nil
		for _, one := range c.cells {
			if one.kind == "code" {
				all = append(all, one.id)
			}
		}
	}
	for _, id := range all {
		if err := c.change(id, func(one *cell) {
			if one.kind != "code" {
				return
			}
			if e := d.outputsOf[one.id]; e == nil || e.ended() {
				one.outputs, one.count = &outputs{}, nil
			} // else: see applied
		}); err != nil {
			return err
		}
	}
	return nil
}

// fromStruct makes JSON of what the protocol has for it.
func fromStruct(object *structpb.Struct) map[string]any {
	result := make(map[string]any, len(object.GetFields()))
	for name, value := range object.GetFields() {
		result[name] = fromValue(value)
	}
	return result
}

func fromValue(value *structpb.Value) any {
	switch value := value.GetKind().(type) {
	case *structpb.Value_StringValue:
		return value.StringValue
	case *structpb.Value_BoolValue:
		return value.BoolValue
	case *structpb.Value_NumberValue:
		return numberOf(value.NumberValue)
	case *structpb.Value_StructValue:
		return fromStruct(value.StructValue)
	case *structpb.Value_ListValue:
		list := make([]any, 0, len(value.ListValue.GetValues()))
		for _, inner := range value.ListValue.GetValues() {
			list = append(list, fromValue(inner))
		}
		return list
	}
	return nil
}

func numberOf(number float64) any {
	switch {
	case math.IsNaN(number) || math.IsInf(number, 0):
		return nil
	case number == math.Trunc(number) && math.Abs(number) < 1<<53:
		return json.Number(strconv.FormatInt(int64(number), 10))
	}
	return json.Number(strconv.FormatFloat(number, 'g', -1, 64))
}
