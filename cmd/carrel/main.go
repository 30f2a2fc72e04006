// Command carrel is the command line of Carrel. One file has one verb; root.go has what they share: finding
// the context, errors, exit codes; output.go how data is shown. Exit codes: 0; 1 for what went wrong; 2 for a
// command line that cannot be understood; exec and attach answer with the command's own and with 255 for
// everything of Carrel's.
package main

import (
	"io"
	"os"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ()))
}

// run is the whole program.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer, env []string) int {
	a := newApp(stdin, stdout, stderr, env)
	root := a.root()
	root.SetArgs(args)
	a.warnOfVariables(env)
	return a.exit(root.ExecuteC())
}
