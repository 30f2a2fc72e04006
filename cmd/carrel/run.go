package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

// maxLocalCode is how much code is read from a file, in bytes; the box takes less, and says so.
const maxLocalCode = 4 << 20

// runOptions are the flags of `carrel run`.
type runOptions struct {
	kernel, output, attach string
	timeout                time.Duration
	detach, restart, json  bool
}

func (a *app) runCommand() *cobra.Command {
	o := runOptions{}
	cmd := &cobra.Command{
		Use:   "run NAME FILE|- [flags] | run NAME:PATH [flags]",
		Short: "Run a program or a notebook in a kernel of a box",
		Long: "Run code in a kernel of a box and show what it puts out as it comes: text as it is, the text form of results, errors\n" +
			"with their traceback, and of pictures their kind and size. What it asks with input() is answered here. The exit code is 0\n" +
			"when all of it succeeded, 1 when it did not, and 255 for what goes wrong in Carrel.\n\n" +
			"A FILE of this machine, or - for standard input, runs in a kernel of its own, which ends with it: nothing is left behind\n" +
			"and nothing is shared. --kernel runs it in a kernel that is there (an id), or in the shared one of a language (python3),\n" +
			"with the variables of what ran there before. A notebook of this machine is run cell by cell until one fails; --output\n" +
			"keeps it with its outputs, the file itself stays as it is.\n\n" +
			"NAME:PATH is a file in the box. A notebook there runs in its own kernel, which people who have it open see too, and its outputs\n" +
			"are written into it. --restart gives that kernel a new process first.\n\n" +
			"Ctrl-C interrupts the code; twice leaves it running. It runs on whatever happens to this program: --attach follows it again,\n" +
			"and a connection that breaks, or a box that is paused and resumed, is waited for.",
		Example: example("carrel run mybox train.py", "carrel run mybox analysis.ipynb --output done.ipynb", "carrel run mybox:work/plot.ipynb",
			"echo 'print(6*7)' | carrel run mybox -", "carrel run mybox long.py --detach", "carrel run mybox --attach e4k2…"),
		Annotations: map[string]string{ownsExitCode: "yes"},
	}
	flags := cmd.Flags()
	flags.StringVarP(&o.kernel, "kernel", "k", "", "`KERNEL` to run in: an id, or the name of a kernelspec for its shared kernel")
	flags.StringVar(&o.output, "output", "", "notebook `FILE` to write here, with the outputs; - is standard output")
	flags.DurationVar(&o.timeout, "timeout", 0, "interrupt it after so long")
	flags.BoolVarP(&o.detach, "detach", "d", false, "print the ids of what was begun and leave it running")
	flags.StringVar(&o.attach, "attach", "", "follow an `EXECUTION` that was begun before, from its beginning")
	flags.BoolVar(&o.restart, "restart", false, "give the notebook's kernel a new process first")
	flags.BoolVar(&o.json, "json", false, "show nothing but, in the end, the executions with their outputs as JSON")
	cmd.ValidArgsFunction = a.places()
	cmd.Args = func(cmd *cobra.Command, args []string) error { return o.check(cmd, args) }
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		defer c.Close()
		r := newRunner(a, c, o)
		ctx, stop := r.watchSignals()
		defer stop()
		if err = r.run(ctx, args); errors.Is(err, errLeft) {
			return exitError(interrupted) // before anything was begun
		}
		return err
	}
	return cmd
}

func (o *runOptions) check(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return usageError(cmd, "NAME is missing")
	case o.timeout < 0:
		return usageError(cmd, "--timeout is %s; it is a duration such as 10m", o.timeout)
	case o.attach != "":
		if len(args) > 1 {
			return usageError(cmd, "%q is one argument too many: --attach names what to follow", args[1])
		}
		if o.detach || o.restart || o.kernel != "" || o.output != "" {
			return usageError(cmd, "--attach follows what runs already; --detach, --restart, --kernel and --output are for what is begun")
		}
		return nil
	case len(args) > 2:
		return usageError(cmd, "%q is one argument too many", args[2])
	}
	place := parsePlace(args[0])
	switch {
	case len(args) == 1 && place.Box == "":
		return usageError(cmd, "FILE is missing: a file of this machine, - for standard input, or NAME:PATH for one in the box")
	case len(args) == 2 && place.Box != "":
		return usageError(cmd, "%q is one argument too many: %s is a file in a box already", args[1], args[0])
	case o.restart && (len(args) == 2 || !isNotebook(place.Path)):
		return usageError(cmd, "--restart is for a notebook in the box, NAME:PATH")
	case o.detach && o.output != "":
		return usageError(cmd, "--output is written when all has ended, and --detach does not wait for that")
	case o.detach && len(args) == 2 && isNotebook(args[1]):
		return usageError(cmd, "a notebook that is left running lies in the box: copy it there with `carrel cp %s %s:` and run %s:%s", args[1], args[0], args[0], filepath.Base(args[1]))
	}
	return nil
}

func isNotebook(name string) bool { return strings.EqualFold(filepath.Ext(name), ".ipynb") }

// job is what is to be run.
type job struct {
	box      string
	name     string // of the file, for its language
	code     string
	notebook string // path in the box, in place of code
	temp     bool   // the notebook was copied there for this
	input    bool   // input() can be answered
}

// run does all of it and ends with the exit code.
func (r *runner) run(ctx context.Context, args []string) error {
	if r.options.attach != "" {
		return r.follow(ctx, args[0])
	}
	j, err := r.prepare(ctx, args)
	if err != nil {
		return err
	}
	r.box, r.notebook = j.box, j.notebook
	status, err := r.c.NotebookStatus(client.Arriving(ctx), j.box) // before anything is begun, so that all of it comes after the cursor
	if err != nil {
		return err
	}
	request := &carrelv1.ExecuteRequest{
		Box: j.box, Path: j.notebook, All: j.notebook != "", Code: j.code, Kernel: r.options.kernel, StopOnError: true, AllowInput: j.input,
	}
	ownKernel := ""
	defer func() { r.tidy(j, ownKernel) }()
	switch {
	case j.notebook == "" && r.options.kernel == "":
		spec, err := r.specFor(ctx, j)
		if err != nil {
			return err
		}
		k, err := r.c.StartKernel(ctx, j.box, spec, "")
		if err != nil {
			return err
		}
		ownKernel, request.Kernel = k.GetId(), k.GetId()
	case r.options.restart:
		if err := r.restart(ctx, j, status); err != nil {
			return err
		}
	}
	begun, err := r.c.Execute(ctx, request)
	if err != nil {
		return err
	}
	for _, e := range begun.GetExecutions() {
		r.expect(e)
		if j.temp {
			ownKernel = e.GetKernel()
		}
	}
	if r.options.detach {
		r.left = true // what was begun keeps its kernel
		for _, e := range begun.GetExecutions() {
			fmt.Fprintln(r.a.stdout, e.GetId())
		}
		return nil
	}
	o := client.WatchOptions{Box: j.box, After: status.GetCursor(), Path: j.notebook}
	if len(begun.GetExecutions()) == 1 && j.notebook == "" {
		o.Execution = begun.GetExecutions()[0].GetId()
	}
	if err := r.watch(ctx, o); err != nil {
		return err
	}
	end := r.finish()
	if err := r.write(j); err != nil {
		r.note("the notebook could not be written: " + err.Error())
		return cmp.Or(end, error(exitError(ownFailure)))
	}
	return end
}

// follow shows an execution from its beginning on.
func (r *runner) follow(ctx context.Context, box string) error {
	r.box = box
	e, err := r.c.GetExecution(ctx, box, r.options.attach)
	if err != nil {
		return err
	}
	r.expect(e)
	if ended(e.GetState()) {
		for _, output := range e.GetOutputs() {
			if err := r.output(output); err != nil {
				return err
			}
		}
		r.truncated(e.GetOutputFile(), e.GetTruncatedBytes())
		r.ended(e)
		return r.finish()
	}
	if err := r.watch(ctx, client.WatchOptions{Box: box, After: "0", Execution: e.GetId()}); err != nil {
		return err
	}
	return r.finish()
}

// prepare reads what is to be run, and copies a notebook of this machine into the box.
func (r *runner) prepare(ctx context.Context, args []string) (*job, error) {
	if len(args) == 1 {
		place := parsePlace(args[0])
		j := &job{box: place.Box, name: place.Path, input: true}
		if isNotebook(place.Path) {
			j.notebook = place.Path
			return j, nil
		}
		var code bytes.Buffer
		err := r.c.Copy(ctx, client.CopyOptions{From: place, To: client.Place{Path: "-"}, Stdout: &limited{to: &code, left: maxLocalCode}})
		j.code = code.String()
		return j, errors.Join(err, empty(j.code, args[0], err))
	}
	j := &job{box: args[0], name: args[1], input: true}
	if isNotebook(args[1]) {
		j.temp, j.notebook = true, ".carrel-run-"+strings.ToLower(rand.Text()[:12])+".ipynb"
		return j, r.c.Copy(ctx, client.CopyOptions{From: client.Place{Path: args[1]}, To: client.Place{Box: j.box, Path: j.notebook}})
	}
	from := r.a.stdin
	if args[1] == "-" {
		j.input = false
	} else {
		file, err := os.Open(args[1])
		if err != nil {
			return nil, carrel.Errorf(carrel.CodeInvalid, "no_file", "the file cannot be read: %v", err)
		}
		defer file.Close()
		from = file
	}
	var code bytes.Buffer
	_, err := io.Copy(&limited{to: &code, left: maxLocalCode}, from)
	j.code = code.String()
	return j, errors.Join(err, empty(j.code, args[1], err))
}

func empty(code, name string, err error) error {
	if err == nil && strings.TrimSpace(code) == "" {
		return carrel.Errorf(carrel.CodeInvalid, "no_code", "there is no code in %s", name)
	}
	return nil
}

// limited takes a limited number of bytes.
type limited struct {
	to   *bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, carrel.Errorf(carrel.CodeInvalid, "code_too_large", "the code has more than %d bytes; is it a program?", maxLocalCode)
	}
	return l.to.Write(p)
}

// specFor picks the kernelspec of a file's language; empty: the box's own choice.
func (r *runner) specFor(ctx context.Context, j *job) (string, error) {
	language := map[string]string{".py": "python", ".r": "r", ".jl": "julia", ".js": "javascript", ".rb": "ruby", ".sh": "bash"}[strings.ToLower(filepath.Ext(j.name))]
	if language == "" {
		return "", nil
	}
	specs, err := r.c.KernelSpecs(ctx, j.box)
	if err != nil {
		return "", err
	}
	found := ""
	for _, spec := range specs.GetSpecs() {
		if strings.EqualFold(spec.GetLanguage(), language) && (found == "" || spec.GetName() == specs.GetDefaultSpec()) {
			found = spec.GetName()
		}
	}
	if found == "" {
		return "", carrel.Errorf(carrel.CodeNotFound, "no_kernelspec", "box %s has no Jupyter kernel for %s; `carrel exec` runs programs without one", j.box, language)
	}
	return found, nil
}

// restart gives the notebook's kernel a new process, if it has a kernel.
func (r *runner) restart(ctx context.Context, j *job, status *carrelv1.NotebookStatus) error {
	for _, k := range status.GetKernels() {
		if p := k.GetPath(); p != "" && (p == j.notebook || strings.HasSuffix(p, "/"+filepath.ToSlash(filepath.Clean(j.notebook)))) {
			_, err := r.c.RestartKernel(ctx, j.box, k.GetId())
			return err
		}
	}
	return nil
}

// tidy removes what was made for one run alone, unless it goes on.
func (r *runner) tidy(j *job, kernel string) {
	if r.left {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if kernel != "" {
		if err := r.c.ShutdownKernel(ctx, j.box, kernel); err != nil && carrel.CodeOf(err) != carrel.CodeNotFound {
			r.note("the kernel of its own could not be ended: " + err.Error())
		}
	}
	if j.temp {
		_, err := r.c.Files.RemoveFile(ctx, connect.NewRequest(&carrelv1.RemoveFileRequest{Box: j.box, Path: j.notebook}))
		if err != nil && carrel.CodeOf(err) != carrel.CodeNotFound {
			r.note(fmt.Sprintf("%s could not be removed in the box: %v", j.notebook, err))
		}
	}
}
