package notebook

import (
	"fmt"
	"maps"
	"runtime/debug"
	"slices"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/notebook/journal"
	"carrel.dev/carrel/internal/carrel"
)

// revival puts what the journal tells of a notebook onto what its file has, when the box failed before that was written.
//
// Either the file is as this service left it, which a note of its sum says: then everything that follows the note is done to it again, as it was done
// in memory. Or somebody else has written it since: then an execution's outputs go into their cell only if that has the text that was executed and shows what it is
// known to have shown before; and texts are merged as with any change by others.
type revival struct {
	d      *document // of its own until all is done, so that nobody sees half of it
	path   string    // as events have it
	theirs *content  // what the file has
	at     uint64    // the last entry of which the file has what it tells
	exact  bool      // the file is as this service left it
	began  bool      // entries behind at have been reached
	last   uint64    // entry that was taken

	executions map[string]*execution      // of cells, by id
	shown      map[string]*execution      // the last that was started, by cell
	whole      map[*execution]bool        // the journal has it from its beginning
	touched    map[string]bool            // cells whose outputs were changed behind at
	known      map[string]map[string]bool // digests of what a cell had, by cell
	sources    map[string]map[string]bool // texts that a cell had here, by cell
	inserted   map[string]bool            // cells that were made here behind at
	left       int                        // cells that were left alone because somebody else changed them
	changed    bool
}

// revive looks for what the journal tells of a document that its file, of which c is the content, does not have; nil: there is nothing. d.saving is held.
func (d *document) revive(c *content) (r *revival) {
	s := d.s
	defer func() { // what the disk has is the user's, and must not end the agent whenever the box starts
		if reason := recover(); reason != nil {
			s.log.Error("what the journal tells of a notebook was not understood; the notebook stays as its file is", "reason", fmt.Sprint(reason), "stack", string(debug.Stack()))
			s.mu.Lock()
			delete(s.behind, d.path)
			s.mu.Unlock()
			r = nil
		}
	}()
	s.mu.Lock()
	from, missing := s.behind[d.path]
	s.mu.Unlock()
	if !missing {
		return nil
	}
	r = newRevival(d, c, from.From)
	// The newest note of what the file has counts: whatever was noted before it is of files that were replaced.
	s.eachEntry(func(entry journal.Entry) {
		n := noteOf(entry.Data)
		if n == nil || n.Path != r.path || entry.Seq <= from.From {
			return
		}
		for id, digest := range n.Cells {
			add(r.known, id, string(digest))
		}
		if len(n.Sum) > 0 && string(n.Sum) == string(d.file.hash[:]) && n.At >= r.at {
			r.exact, r.at = true, n.At
		}
	})
	s.eachEntry(func(entry journal.Entry) {
		r.take(entry.Seq, eventOf(entry))
	})
	r.begin()
	r.end()
	return r
}

// newRevival begins one of a document whose file has c, and of which it has what is told up to an entry.
func newRevival(d *document, c *content, at uint64) *revival {
	return &revival{
		d:    &document{s: d.s, path: d.path, content: c.apart(), base: map[string]string{}, outputsOf: map[string]*execution{}},
		path: carrel.EncodeFileName(d.path), theirs: c, at: at, executions: map[string]*execution{}, shown: map[string]*execution{},
		whole: map[*execution]bool{}, touched: map[string]bool{}, known: map[string]map[string]bool{}, sources: map[string]map[string]bool{}, inserted: map[string]bool{},
	}
}

// add adds a member to one of many sets.
func add(to map[string]map[string]bool, set, member string) {
	if to[set] == nil {
		to[set] = map[string]bool{}
	}
	to[set][member] = true
}

// eachEntry calls f with every entry that the journal keeps now.
func (s *Service) eachEntry(f func(journal.Entry)) {
	end := s.journal.LastSeq()
	reader, ok := s.journal.Read("0")
	if !ok {
		return
	}
	defer reader.Close()
	for {
		entries, _, wait, err := reader.Next()
		if err != nil || wait != nil {
			return
		}
		for _, entry := range entries {
			if entry.Seq > end {
				return
			}
			f(entry)
		}
	}
}

// apart gives a content whose cells can be changed without those of c.
func (c *content) apart() *content {
	same := &content{metadata: c.metadata, extra: c.extra, minor: c.minor, cells: make([]*cell, 0, len(c.cells))}
	for _, one := range c.cells {
		copied := *one
		same.cells = append(same.cells, &copied)
	}
	return same
}

// take does what an event tells; nil: an entry of which nothing is to be done.
func (r *revival) take(seq uint64, event *carrelv1.NotebookEvent) {
	if seq != r.last+1 { // something in between is not kept
		clear(r.whole)
	}
	r.last = seq
	behind := seq > r.at
	if behind {
		r.begin()
	}
	if event == nil {
		return
	}
	if update := event.GetDisplayUpdate(); update != nil {
		for _, e := range r.executions {
			if e.kernel == event.GetKernel() && e.outputs.has(update.GetDisplayId()) {
				r.apply(e, event, behind)
			}
		}
		return
	}
	if event.GetPath() != r.path {
		return
	}
	if edited := event.GetEdited(); edited != nil && behind {
		for _, edit := range edited.GetEdits() {
			r.edit(edit)
		}
		return
	}
	if event.GetCell() == "" {
		return
	}
	switch event.GetEvent().(type) {
	case *carrelv1.NotebookEvent_Queued:
		e := r.execution(event)
		e.code = event.GetQueued().GetCode()
	case *carrelv1.NotebookEvent_Started:
		r.start(r.execution(event), event.GetStarted().GetExecutionCount(), behind)
	case *carrelv1.NotebookEvent_Output, *carrelv1.NotebookEvent_ClearOutput:
		e := r.execution(event)
		if r.shown[e.cell] == nil && r.began && r.exact { // its beginning is no longer kept
			r.shown[e.cell] = e
			r.goOn(e)
		}
		r.apply(e, event, behind)
	case *carrelv1.NotebookEvent_Ended:
		e := r.executions[event.GetExecution()]
		if e == nil {
			return
		}
		e.state = event.GetEnded().GetState()
		if count := event.GetEnded().GetExecutionCount(); count > 0 && count != e.count {
			e.count = count
			if one := e.cellOf(); one != nil && behind && r.d.outputsOf[e.cell] == e {
				one.count = countValue(count)
				r.changed = true
			}
		}
		if r.shown[e.cell] != e {
			delete(r.executions, e.id)
		}
	}
}

// has reports whether an output can be updated by a display id.
func (o *outputs) has(display string) bool {
	return display != "" && slices.ContainsFunc(o.list, func(one *output) bool { return one.display == display })
}

// execution gives the one that an event is of.
func (r *revival) execution(event *carrelv1.NotebookEvent) *execution {
	e := r.executions[event.GetExecution()]
	if e == nil {
		e = &execution{id: event.GetExecution(), kernel: event.GetKernel(), path: r.d.path, cell: event.GetCell(), state: queued, outputs: &outputs{}, document: r.d}
		r.executions[e.id] = e
	}
	return e
}

func (r *revival) start(e *execution, count int32, behind bool) {
	if before := r.shown[e.cell]; before != nil && before.ended() {
		delete(r.executions, before.id)
	}
	e.state, e.count, e.outputs = running, count, &outputs{}
	r.shown[e.cell], r.whole[e] = e, true
	if !behind {
		return
	}
	r.touched[e.cell] = true
	if !r.exact {
		return
	}
	if one := e.cellOf(); one != nil {
		one.outputs, one.count = e.outputs, countValue(e.count)
		r.d.outputsOf[e.cell] = e
		r.changed = true
	}
}

func (r *revival) apply(e *execution, event *carrelv1.NotebookEvent, behind bool) {
	e.outputs.apply(event)
	if behind {
		r.touched[e.cell] = true
		if one := e.cellOf(); one != nil && one.outputs == e.outputs {
			r.changed = true
		}
	}
}

// begin has what follows done to the cells: those that an execution was changing have its outputs from here on.
func (r *revival) begin() {
	if r.began {
		return
	}
	r.began = true
	if !r.exact {
		return
	}
	for _, e := range r.shown {
		one := e.cellOf()
		if one == nil {
			continue
		}
		mine := &cell{outputs: e.outputs, count: countValue(e.count)}
		switch {
		case mine.digest() != nil && string(mine.digest()) == string(one.digest()):
			one.outputs = e.outputs
			if !e.ended() {
				r.d.outputsOf[e.cell] = e
			}
		case !e.ended(): // somebody cleared it, say
			r.goOn(e)
		}
	}
}

// goOn has an execution's outputs follow what the file has of them.
func (r *revival) goOn(e *execution) {
	if one := e.cellOf(); one != nil {
		e.outputs = one.outputs
		r.d.outputsOf[e.cell] = e
	}
}

// edit does an edit again.
func (r *revival) edit(edit *carrelv1.NotebookEdit) {
	c := r.d.content
	if r.exact {
		if c.edit(edit, r.d) == nil {
			r.d.applied(edit)
			r.changed = true
		}
		return
	}
	switch {
	case edit.GetInsert() != nil:
		insert := &carrelv1.InsertCell{After: edit.GetInsert().GetAfter(), Cell: edit.GetInsert().GetCell()}
		if insert.After != "" && c.find(insert.After) < 0 { // somebody removed it
			insert.After = ""
			if last := len(c.cells) - 1; last >= 0 {
				insert.After = c.cells[last].id
			}
		}
		if c.insert(insert) == nil {
			id, _ := fromStruct(insert.GetCell())["id"].(string)
			r.inserted[id] = true
		}
	case edit.GetRemove() != "":
		if at := c.find(edit.GetRemove()); at >= 0 && r.inserted[edit.GetRemove()] {
			c.cells = slices.Delete(c.cells, at, at+1)
			delete(r.inserted, edit.GetRemove())
		}
		delete(r.shown, edit.GetRemove())
	case edit.GetSource() != nil:
		id := edit.GetSource().GetCell()
		if edit.GetSource().Expected != nil {
			add(r.sources, id, edit.GetSource().GetExpected())
		}
		add(r.sources, id, edit.GetSource().GetSource())
		_ = c.change(id, func(one *cell) { one.source = edit.GetSource().GetSource() }) // a cell that is not there stays away
	case edit.GetClearOutputs() != "":
		for id, e := range r.shown {
			if id != edit.GetClearOutputs() && edit.GetClearOutputs() != "*" {
				continue
			}
			if e.outputs.clear(false); e.ended() {
				e.count = 0
			}
			r.touched[id] = true
		}
	}
}

// end settles what is put into a file that somebody else has written.
func (r *revival) end() {
	for _, e := range r.executions {
		if !e.ended() { // it was lost, and that could not be told
			e.state = lost
		}
	}
	if r.exact {
		return
	}
	for id := range r.touched {
		e := r.shown[id]
		at := r.theirs.find(id)
		if e == nil || at < 0 || r.theirs.cells[at].kind != "code" {
			continue
		}
		theirs, before := r.theirs.cells[at], ""
		mine := &cell{outputs: e.outputs, count: countValue(e.count)}
		if digest := theirs.digest(); digest != nil {
			before = string(digest)
		}
		switch {
		case string(mine.digest()) == before && before != "":
		case !r.whole[e] || !r.known[id][before] || theirs.source != e.code && !r.sources[id][theirs.source]:
			r.left++
		default:
			_ = r.d.content.change(id, func(one *cell) { one.outputs, one.count = mine.outputs, mine.count })
			r.d.outputsOf[id] = e
			r.changed = true
		}
	}
	r.d.base = make(map[string]string, len(r.theirs.cells))
	for _, one := range r.theirs.cells {
		r.d.base[one.id] = one.source
		mine := r.d.content.find(one.id)
		if r.d.content.cells[mine].source == one.source {
			continue
		}
		r.changed = true
		if !r.sources[one.id][one.source] { // it is somebody else's
			r.d.base[one.id] = one.source + "\n"
			if r.d.content.cells[mine].source == r.d.base[one.id] {
				r.d.base[one.id] += "\n"
			}
		}
	}
	r.changed = r.changed || len(r.inserted) > 0
}

// revived takes what a revival has made; nil: nothing. Service.mu is held, and d is as its file.
func (d *document) revived(r *revival) {
	if r == nil {
		return
	}
	delete(d.s.behind, d.path)
	d.noted, d.from = true, r.at
	var told []string
	if r.changed {
		told = append(told, "the box had failed before everything was in the file; what was missing was put into it")
	}
	if r.left > 0 {
		told = append(told, fmt.Sprintf("the box had failed before the outputs of %d cells were in the file, and somebody else has changed these since; the outputs are in the box's journal alone", r.left))
	}
	if !r.changed {
		d.repairs = append(d.repairs, told...)
		d.agrees()
		return
	}
	for _, e := range r.executions {
		e.document = d
	}
	d.outputsOf = maps.Clone(r.d.outputsOf)
	if r.exact {
		d.content = r.d.content
		d.repairs = append(d.repairs, told...)
		d.changed(saveSoon)
		return
	}
	d.content, d.base = r.d.content, r.d.base
	d.merge(r.theirs, append(d.repairs, told...))
}
