package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

func (a *app) cpCommand() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "cp SOURCE DESTINATION",
		Short: "Copy files and directories to, from and between boxes",
		Long: "Copy a file or a directory. A path in a box is NAME:PATH, absolute or relative to the user's home; everything else\n" +
			"is a path of this machine, - is standard input or output (a directory is written there as tar.zst).\n\n" +
			"To a directory that is there, something is copied into it under its own name; a directory copied to where nothing is\n" +
			"becomes that. SOURCE/. means what is in the directory. Modes and times are kept, links in directories stay\n" +
			"links. A file appears when all of it is there, and a broken connection is made again and goes on where it broke; a\n" +
			"large upload goes on also when the same command is given again within a day.",
		Example: example("carrel cp notes.txt mybox:", "carrel cp ./src mybox:/home/carrel/work", "carrel cp mybox:results/. ./results",
			"carrel cp mybox:data.csv other:data.csv", "pg_dump db | carrel cp - mybox:dump.sql"),
		Args: takes("SOURCE", "DESTINATION"),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	cmd.ValidArgsFunction = a.places()
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o := client.CopyOptions{From: parsePlace(args[0]), To: parsePlace(args[1]), Stdin: a.stdin, Stdout: a.stdout}
		if o.From.Box == "" && o.To.Box == "" {
			return usageError(cmd, "neither %q nor %q is in a box; one of them is NAME:PATH", args[0], args[1])
		}
		return a.does(func(ctx context.Context, c *client.Client, _ []string) error {
			if file, ok := a.stderr.(*os.File); ok && !quiet && term.IsTerminal(int(file.Fd())) {
				bar := &copyLine{a: a, now: time.Now}
				o.Progress = bar.update
				defer bar.clear()
			}
			err := c.Copy(ctx, o)
			if err != nil && ctx.Err() != nil {
				return carrel.Errorf(carrel.CodeAborted, "interrupted", "interrupted; nothing was put in place that is not complete")
			}
			return err
		})(cmd, args)
	}
	return cmd
}

// parsePlace tells NAME:PATH from a path of this machine. What begins with / or . is one of this machine, whatever it has after
// that, as is a drive's letter.
func parsePlace(text string) client.Place {
	box, path, ok := strings.Cut(text, ":")
	switch {
	case !ok || box == "" || text[0] == '/' || text[0] == '.' || strings.ContainsAny(box, `/\`),
		len(box) == 1 && runtime.GOOS == "windows":
		return client.Place{Path: text}
	}
	if path == "" {
		path = "."
	}
	return client.Place{Box: box, Path: path}
}

// places completes boxes, paths in boxes and files of this machine.
func (a *app) places() completion {
	boxes := a.boxNames()
	return func(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 1 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		if place := parsePlace(start); place.Box != "" {
			return a.remotePaths(cmd, place, start)
		}
		names, _ := boxes(cmd, nil, start)
		var list []string
		for _, name := range names {
			if name, state, _ := strings.Cut(name, "\t"); strings.HasPrefix(name, start) {
				list = append(list, name+":\t"+state)
			}
		}
		if start == "" || len(list) == 0 {
			files, _ := filepath.Glob(start + "*")
			list = append(list, files...)
		}
		return list, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	}
}

// remotePaths completes a path in a box.
func (a *app) remotePaths(cmd *cobra.Command, place client.Place, start string) ([]string, cobra.ShellCompDirective) {
	at := strings.LastIndexAny(start, ":/")
	dir := strings.TrimPrefix(start[:at+1], place.Box+":")
	prefix := start[at+1:]
	names, directive := a.completes(func(ctx context.Context, c *client.Client) []string {
		path := dir
		if path == "" {
			path = "."
		}
		resp, err := c.Files.ListFiles(ctx, connect.NewRequest(&carrelv1.ListFilesRequest{Box: place.Box, Path: path}))
		if err != nil {
			return nil
		}
		var list []string
		for _, f := range resp.Msg.GetFiles() {
			name := f.GetPath()[strings.LastIndexByte(f.GetPath(), '/')+1:]
			if f.GetType() == "directory" {
				name += "/"
			}
			if strings.HasPrefix(name, prefix) && printable(name) == name {
				list = append(list, place.Box+":"+dir+name)
			}
		}
		return list
	})(cmd, nil, start)
	return names, directive | cobra.ShellCompDirectiveNoSpace
}

// progressEvery is how often the line is drawn.
const progressEvery = 200 * time.Millisecond

// copyLine shows how far a copy is, on one line of a terminal.
type copyLine struct {
	a     *app
	now   func() time.Time
	begun time.Time
	first int64 // done when it began: what was copied by another command
	drawn time.Time
	width int
}

func (p *copyLine) update(name string, done, total int64) {
	now := p.now()
	if p.begun.IsZero() {
		p.begun, p.first = now, done
		p.drawn = now
		return
	}
	if now.Sub(p.drawn) < progressEvery {
		return
	}
	p.drawn = now
	line := progressText(name, done, total, float64(max(done-p.first, 0))/now.Sub(p.begun).Seconds())
	fmt.Fprintf(p.a.stderr, "\r%-*s", p.width, line)
	p.width = len(line)
}

// progressText is one line of at most about 80 characters. rate is in bytes per second.
func progressText(name string, done, total int64, rate float64) string {
	name = printable(name)
	if runes := []rune(name); len(runes) > 30 {
		name = string(runes[:29]) + "…"
	}
	text := fmt.Sprintf("%s  %s", name, amount(done))
	if total > 0 {
		text += fmt.Sprintf(" of %s  %d%%", amount(total), min(100, int(float64(done)/float64(total)*100)))
	}
	text += fmt.Sprintf("  %s/s", amount(int64(rate)))
	if total > 0 && rate > 1 && done < total {
		text += fmt.Sprintf("  %s left", time.Duration(float64(total-done)/rate*float64(time.Second)).Round(time.Second))
	}
	return text
}

// amount shows bytes with one digit after the point.
func amount(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

func (p *copyLine) clear() {
	if p.width > 0 {
		fmt.Fprintf(p.a.stderr, "\r%*s\r", p.width, "")
	}
}
