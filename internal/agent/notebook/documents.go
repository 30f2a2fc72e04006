package notebook

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"maps"
	"sync"
	"time"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/kernel"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// maxDocuments open at a time; documentKept is how long one is open after it was last used.
	maxDocuments = 64
	documentKept = 10 * time.Minute
	// pollTime is how often the file of an open document is looked at for changes by others.
	pollTime = 2 * time.Second
)

// document is an open notebook. Its fields are guarded by Service.mu, but for the first ones.
type document struct {
	s      *Service
	path   string        // changed with both saving and Service.mu held
	number int64         // of all that were opened
	loaded chan struct{} // closed when content or err is there
	wake   chan struct{} // has one when the document is to be saved, or closed
	saving sync.Mutex    // held while its file is touched; before Service.mu
	file   fileState     // guarded by saving

	err      error // why it could not be opened
	content  *content
	revision int64
	repairs  []string
	users    int
	used     time.Time
	closing  bool

	// version rises with every change; saved is the one that the file has.
	version, saved int64
	saveAt         time.Time // when to save; zero: nothing is to be saved
	lastSave       time.Duration
	failures       int
	unsaved        string
	removed        bool              // the file is no longer there
	sum            [sha256.Size]byte // of the file
	noted          bool              // the journal knows what file the changes since are made to
	from           uint64            // the last entry of which that file has what it tells
	base           map[string]string
	outputsOf      map[string]*execution // by cell: whose outputs may not be in the file
}

// document opens a notebook, or gives the open one. The caller calls release.
func (s *Service) document(ctx context.Context, path string) (*document, error) {
	return s.openDocument(ctx, path, func(d *document) error { return d.load() })
}

func (s *Service) openDocument(ctx context.Context, path string, load func(*document) error) (*document, error) {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, carrel.Errorf(carrel.CodeUnavailable, "box_stopping", "the box is being stopped")
		}
		d := s.documents[path]
		if d == nil {
			if len(s.documents) >= maxDocuments && !s.closeOldest() {
				s.mu.Unlock()
				return nil, carrel.Errorf(carrel.CodeExhausted, "too_many_notebooks", "%d notebooks are in use in the box; no more can be opened", maxDocuments)
			}
			s.opened++
			d = &document{
				s: s, path: path, number: s.opened, loaded: make(chan struct{}), wake: make(chan struct{}, 1), users: 1, used: s.now(),
				base: map[string]string{}, outputsOf: map[string]*execution{},
			}
			s.documents[path] = d
			s.mu.Unlock()
			return d.open(load)
		}
		d.users++
		d.used = s.now()
		s.mu.Unlock()
		select {
		case <-d.loaded:
		case <-ctx.Done():
			s.release(d)
			return nil, ctx.Err()
		}
		s.mu.Lock()
		err, again := d.err, d.closing
		s.mu.Unlock()
		if err == nil && !again {
			return d, nil
		}
		s.release(d)
		if err != nil {
			return nil, err
		}
	}
}

// open reads the file of a new document.
func (d *document) open(load func(*document) error) (*document, error) {
	s := d.s
	err := load(d)
	s.mu.Lock()
	defer s.mu.Unlock()
	close(d.loaded)
	if err != nil {
		d.err = err
		delete(s.documents, d.path)
		return nil, err
	}
	d.revision = 1
	s.wg.Go(d.run)
	return d, nil
}

func (s *Service) release(d *document) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.users--
	d.used = s.now()
}

// closeOldest closes the document that was not used for the longest time, and reports whether there was one. s.mu is held.
func (s *Service) closeOldest() bool {
	var oldest *document
	for _, d := range s.documents {
		if d.idle() && (oldest == nil || d.used.Before(oldest.used)) {
			oldest = d
		}
	}
	if oldest == nil {
		return false
	}
	oldest.close()
	return true
}

// idle reports whether nobody needs the document. Service.mu is held.
func (d *document) idle() bool {
	return d.users == 0 && d.version == d.saved && d.content != nil && !d.closing
}

// close takes the document out of memory; the next one of its path begins with the file. Service.mu is held.
func (d *document) close() {
	d.closing = true
	delete(d.s.documents, d.path)
	for _, e := range d.s.executions { // which have all ended, and would keep the whole of it in memory
		if e.document == d {
			e.document = nil
		}
	}
	signal(d.wake)
}

func signal(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}

// run saves the document when there is something to be saved, and looks at what others do to its file.
func (d *document) run() {
	s := d.s
	poll := time.NewTicker(pollTime)
	defer poll.Stop()
	due := time.NewTimer(time.Hour)
	defer due.Stop()
	for {
		s.mu.Lock()
		closing, at := d.closing, d.saveAt
		s.mu.Unlock()
		if closing {
			return
		}
		due.Stop()
		if !at.IsZero() {
			due.Reset(max(0, at.Sub(s.now())))
		}
		select {
		case <-d.wake:
		case <-due.C:
			_ = d.save() // noted in the document
		case <-poll.C:
			d.look()
		case <-s.ctx.Done():
			return
		}
	}
}

// look notices changes by others, and closes a document that nobody has used for a while.
func (d *document) look() {
	s := d.s
	s.mu.Lock()
	if d.idle() && s.now().Sub(d.used) > documentKept {
		d.close()
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	d.saving.Lock()
	defer d.saving.Unlock()
	if err := d.refresh(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Debug("a notebook could not be looked at", "error", err)
	}
}

// changed notes a change and has it saved within so long. Service.mu is held.
func (d *document) changed(within time.Duration) {
	d.version++
	at := d.s.now().Add(max(within, min(8*d.lastSave, 30*time.Second)))
	if d.saveAt.IsZero() || at.Before(d.saveAt) && d.failures == 0 {
		d.saveAt = at
		signal(d.wake)
	}
}

// The times within which a change is in the file.
const (
	saveSoon  = 100 * time.Millisecond
	saveLater = 700 * time.Millisecond
)

// flushDocuments saves every document that has something to be saved.
func (s *Service) flushDocuments(context.Context) error {
	s.mu.Lock()
	var all []*document
	for _, d := range s.documents {
		if d.content != nil && d.version != d.saved {
			all = append(all, d)
		}
	}
	s.mu.Unlock()
	var problems error
	for _, d := range all {
		err := d.save()
		for range maxMeanwhile {
			if errors.Is(err, errMeanwhile) {
				err = d.save()
			}
		}
		problems = errors.Join(problems, err)
	}
	return problems
}

// closeDocuments saves what is not saved; nothing else runs any more.
func (s *Service) closeDocuments() {
	if err := s.flushDocuments(context.Background()); err != nil {
		s.log.Warn("a notebook could not be saved when the box stopped; its outputs are in the journal", "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.documents)
}

// specOf gives the name of the kernelspec that a notebook asks for; empty: the box's default.
func (s *Service) specOf(ctx context.Context, path string) (string, error) {
	d, err := s.document(ctx, path)
	if carrel.CodeOf(err) == carrel.CodeNotFound {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer s.release(d)
	specs, _, err := s.config.Kernels.Specs()
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	wanted := objectOf(d.content.metadata["kernelspec"])
	language, _ := objectOf(d.content.metadata["language_info"])["name"].(string)
	s.mu.Unlock()
	name, _ := wanted["name"].(string)
	if text, ok := wanted["language"].(string); ok {
		language = text
	}
	return chooseSpec(specs, name, language), nil
}

// chooseSpec gives the spec with a name, or else one of the same language: a notebook from elsewhere names a kernel that is not here.
func chooseSpec(specs []kernel.Spec, name, language string) string {
	for _, spec := range specs {
		if spec.Name == name {
			return name
		}
	}
	for _, spec := range specs {
		if language != "" && spec.Language == language {
			return spec.Name
		}
	}
	return name
}

// toExecute makes executions of the cells that a request names. Service.mu is held.
func (d *document) toExecute(request *carrelv1.ExecuteRequest) (all []*execution, err error) {
	wanted := request.GetCells()
	if request.GetAll() {
		for _, one := range d.content.cells {
			wanted = append(wanted, one.id)
		}
	}
	places := make(map[string]*cell, len(d.content.cells))
	for _, one := range d.content.cells {
		places[one.id] = one
	}
	for _, id := range wanted {
		one := places[id]
		if one == nil {
			return nil, cellNotFound(id)
		}
		if source, given := request.GetSources()[id]; given && source != one.source {
			return nil, cellChanged(id)
		}
		if one.kind != "code" {
			continue
		}
		all = append(all, &execution{cell: id, code: one.source, document: d})
	}
	d.users += len(all) // until they have ended
	return all, nil
}

func cellNotFound(id string) error {
	e := carrel.Errorf(carrel.CodeNotFound, "cell_not_found", "the notebook has no cell %q; perhaps somebody removed it", cutText(id, 64))
	e.Metadata = map[string]string{"cell": cutText(id, 64)}
	return e
}

func cellChanged(id string) error {
	e := carrel.Errorf(carrel.CodeAborted, "cell_changed", "the cell %q was changed by somebody else meanwhile; look at it and try again", cutText(id, 64))
	e.Metadata = map[string]string{"cell": cutText(id, 64)}
	return e
}

// cellOf gives the cell that an execution is of; nil: none, or it was removed. Service.mu is held.
func (e *execution) cellOf() *cell {
	if e.document == nil || e.document.content == nil {
		return nil
	}
	if at := e.document.content.find(e.cell); at >= 0 && e.document.content.cells[at].kind == "code" {
		return e.document.content.cells[at]
	}
	return nil
}

// executionStarted empties the cell's outputs in favour of those of the execution. Service.mu is held.
func (s *Service) executionStarted(e *execution) {
	one := e.cellOf()
	if one == nil {
		return
	}
	e.document.replaces(one)
	one.outputs, one.count = e.outputs, countValue(e.count)
	e.document.outputsOf[e.cell] = e
	e.document.changed(saveLater)
}

// touched has an execution's outputs saved. Service.mu is held.
func (s *Service) touched(e *execution) {
	if d := e.document; d != nil && !d.closing {
		d.changed(saveLater)
	}
}

// executionEnded lets go of an execution. Service.mu is held.
func (s *Service) executionEnded(e *execution) {
	if d := e.document; d != nil {
		if one := e.cellOf(); one != nil && d.outputsOf[e.cell] == e {
			one.count = countValue(e.count)
			d.revision++
			d.changed(saveSoon)
		}
		d.users--
		d.used = s.now()
	}
	s.remembered(e)
}

// GetNotebook gives a notebook as it is now.
func (s *Service) GetNotebook(ctx context.Context, request *carrelv1.GetNotebookRequest) (*carrelv1.Notebook, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	if request.GetPath() == "" {
		return nil, carrel.Errorf(carrel.CodeInvalid, "no_path", "the request names no notebook")
	}
	path, err := s.path(request.GetPath())
	if err != nil {
		return nil, err
	}
	d, err := s.document(ctx, path)
	if err != nil {
		return nil, err
	}
	defer s.release(d)
	d.saving.Lock()
	err = d.refresh() // what others did a moment ago is seen
	d.saving.Unlock()
	if err != nil && errors.Is(err, fs.ErrNotExist) {
		return nil, fileError("read", path, err)
	}
	shown := &carrelv1.Notebook{Path: carrel.EncodeFileName(path)}
	if k := s.config.Kernels.OfPath(path); k != nil {
		s.mu.Lock()
		shown.Kernel = s.showKernel(k.Info())
		s.mu.Unlock()
	}
	s.mu.Lock()
	now := d.content.snapshot()
	shown.Revision, shown.Repairs, shown.Unsaved = d.revision, d.repairs, d.unsaved
	shown.Executions, shown.Cursor = s.working(path), s.journal.Last()
	s.mu.Unlock()
	shown.Content = toStruct(now.show())
	return shown, nil
}

const (
	// maxShown is how much of outputs is shown of a notebook, in bytes.
	maxShown = 16 << 20
)

// show gives a notebook as watchers get it: texts joined, display ids with the outputs, and the largest outputs left out of too many.
func (c *content) show() map[string]any {
	root := maps.Clone(c.extra)
	if root == nil {
		root = map[string]any{}
	}
	left := c.leaveOut(maxShown)
	list := make([]any, 0, len(c.cells))
	for _, one := range c.cells {
		fields := one.fields()
		fields["source"] = one.source
		if one.outputs != nil {
			shown := make([]any, 0, len(one.outputs.list))
			for _, out := range one.outputs.list {
				if size, out := left[out]; out {
					shown = append(shown, map[string]any{"output_type": "stream", "name": "stderr", "text": leftOut(size)})
					continue
				}
				value := out.value()
				if out.display != "" {
					value = maps.Clone(value)
					value["transient"] = map[string]any{"display_id": out.display}
				}
				shown = append(shown, value)
			}
			fields["outputs"] = shown
		}
		list = append(list, fields)
	}
	root["cells"], root["metadata"], root["nbformat"], root["nbformat_minor"] = list, c.metadata, jsonFour, c.minor
	return root
}
