package carrel

import (
	"regexp"
	"strings"
	"time"
	"unicode/utf8"
)

// Purpose says why a box was made. Boxes with a purpose are hidden: they belong to Carrel, no user sees them, and no policy
// of use or quota is about them.
type Purpose string

const (
	PurposeUser     Purpose = ""
	PurposePrebuild Purpose = "prebuild" // prepared, then paused for ever: new boxes are cloned from its memory
	PurposePool     Purpose = "pool"     // prepared, and running until somebody takes it
)

const (
	// DefaultPrepare and MaxPrepare are how long preparing a box may take where nothing is said, and at most.
	DefaultPrepare = 5 * time.Minute
	MaxPrepare     = 30 * time.Minute
	// MaxPool is the largest size of a warm pool.
	MaxPool = 100

	maxSetup      = 50
	maxSetupBytes = 16 << 10
)

// Prebuild is what a template has done in a box before others are cloned from it: set-up commands first, then a kernel is started and runs
// code. The zero value is nothing.
type Prebuild struct {
	Setup   []string      `json:"setup,omitempty"`   // shell commands, one after the other as the box's user
	Kernel  string        `json:"kernel,omitempty"`  // name of a Jupyter kernel
	Imports string        `json:"imports,omitempty"` // code that the kernel runs
	Timeout time.Duration `json:"timeout,omitempty"` // for all of it; 0: DefaultPrepare
}

var kernelPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Validate refuses what could not be done. Errors have CodeInvalid, the reason bad_prebuild, and the field in their metadata.
func (p Prebuild) Validate() error {
	bad := func(field, format string, args ...any) error {
		e := Errorf(CodeInvalid, "bad_prebuild", format, args...)
		e.Metadata = map[string]string{"field": field}
		return e
	}
	if len(p.Setup) > maxSetup {
		return bad("setup", "has %d commands; at most %d are run", len(p.Setup), maxSetup)
	}
	for _, command := range p.Setup {
		if strings.TrimSpace(command) == "" || len(command) > maxSetupBytes || !utf8.ValidString(command) || strings.ContainsRune(command, 0) {
			return bad("setup", "must have shell commands of at most %d bytes", maxSetupBytes)
		}
	}
	switch {
	case p.Kernel != "" && !kernelPattern.MatchString(p.Kernel):
		return bad("kernel", "%q is no name of a kernel; `jupyter kernelspec list` in a box shows them", p.Kernel)
	case p.Imports != "" && p.Kernel == "":
		return bad("imports", "needs a kernel that runs it: say kernel as well")
	case len(p.Imports) > maxSetupBytes || !utf8.ValidString(p.Imports) || strings.ContainsRune(p.Imports, 0):
		return bad("imports", "must be text of at most %d bytes", maxSetupBytes)
	case p.Timeout < 0 || p.Timeout > MaxPrepare:
		return bad("timeout", "is %s; it must be at most %s", FormatPeriod(p.Timeout), FormatPeriod(MaxPrepare))
	case len(p.Setup) == 0 && p.Kernel == "":
		return bad("setup", "is missing; say what is prepared: setup commands, a kernel, or both")
	}
	return nil
}

// Limit is how long preparing may take.
func (p Prebuild) Limit() time.Duration {
	if p.Timeout == 0 {
		return DefaultPrepare
	}
	return p.Timeout
}

// ForFresh is what of it a user's box needs that could not be cloned: its set-up. Nil: nothing.
func (p *Prebuild) ForFresh() *Prebuild {
	if p == nil || len(p.Setup) == 0 {
		return nil
	}
	return &Prebuild{Setup: p.Setup, Timeout: p.Timeout}
}
