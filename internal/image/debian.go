package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

// bootstrap has mmdebstrap make a Debian system in work and returns the tar file of it. It runs in
// namespaces of its own, so that when it or this process is killed no process and no mount is left.
func (b *Builder) bootstrap(ctx context.Context, d *Definition, work string, progress func(string)) (string, error) {
	if os.Geteuid() != 0 {
		return "", carrel.Errorf(carrel.CodePrecondition, "not_root", "building an image from Debian packages needs root; run carreld node as root")
	}
	for _, program := range []string{b.cfg.Mmdebstrap, "unshare", "apt-get"} {
		if _, err := exec.LookPath(program); err != nil {
			return "", carrel.Errorf(carrel.CodePrecondition, "program_missing", "building an image needs %s, which is not installed; run: apt-get install mmdebstrap util-linux apt", program)
		}
	}
	sources := mirrorSources(d.Mirror, d.Suite)
	if d.Mirror == "" {
		var err error
		if sources, err = debianSources(b.cfg.AptDir, d.Suite); err != nil {
			return "", err
		}
	}
	if err := writeScripts(d, work, sources); err != nil {
		return "", fmt.Errorf("preparing the build: %w", err)
	}
	target := filepath.Join(work, "root.tar")
	args := []string{
		"--mount", "--pid", "--fork", "--mount-proc", "--ipc", "--uts", "--kill-child=SIGKILL", "--",
		b.cfg.Mmdebstrap, "--verbose", "--mode=root", "--format=tar", "--variant=" + d.Variant,
		"--dpkgopt=" + filepath.Join(work, "dpkg.cfg"),
		`--aptopt=Acquire::Languages "none"`, `--aptopt=Acquire::Retries "3"`,
		"--setup-hook=" + filepath.Join(work, "setup.sh"),
		"--customize-hook=" + filepath.Join(work, "customize.sh"),
	}
	const usrMerge = "/usr/share/mmdebstrap/hooks/merged-usr"
	if _, err := os.Stat(usrMerge); err == nil {
		args = append(args, "--hook-dir="+usrMerge)
	}
	for _, line := range aptProxies(ctx) {
		args = append(args, "--aptopt="+line)
	}
	if len(d.Packages) > 0 {
		args = append(args, "--include="+strings.Join(d.Packages, ","))
	}
	args = append(args, d.Suite, target, filepath.Join(work, "carrel.sources"))
	log := &buildLog{progress: progress}
	err := runTied(ctx, work, log, "unshare", args...)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err == nil {
		_, err = os.Stat(target)
	}
	if err != nil {
		return "", log.explain(d, err)
	}
	return target, nil
}

// runTied runs a program whose life is tied to the context and to this process: nothing of it is left
// when runTied answers, however it ends.
func runTied(ctx context.Context, work string, output io.Writer, name string, args ...string) error {
	// The kernel sends Pdeathsig when the thread that started the child ends: it must not, before the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = work
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "TMPDIR=" + work, "DEBIAN_FRONTEND=noninteractive"}
	for _, key := range []string{"http_proxy", "https_proxy", "no_proxy"} {
		if value, ok := os.LookupEnv(key); ok {
			cmd.Env = append(cmd.Env, key+"="+value)
		}
	}
	cmd.Stdout, cmd.Stderr = output, output // both pipes end only when the last process of it has
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return cmd.Run()
}

var proxyLine = regexp.MustCompile(`^Acquire::(http|https|ftp)::(?i:proxy)(::[A-Za-z0-9.-]+)? "[^"\\]+";$`)

// aptProxies returns the proxies that the machine's own apt uses, as lines of its configuration.
func aptProxies(ctx context.Context) []string {
	out, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return nil // without apt's own settings the build says itself what it cannot reach
	}
	var lines []string
	for line := range strings.SplitSeq(string(out), "\n") {
		if proxyLine.MatchString(line) {
			lines = append(lines, strings.TrimSuffix(line, ";"))
		}
	}
	return lines
}

const dpkgConfig = `path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/lintian/*
path-exclude=/usr/share/linda/*
path-exclude=/usr/share/bug/*
path-exclude=/usr/share/groff/*
path-exclude=/usr/share/locale/*
path-include=/usr/share/locale/locale.alias
path-exclude=/usr/share/gnome/help/*
force-unsafe-io
`

// The package usrmerge would bring perl; usr-is-merged does without, where the links are there from the start.
const setupScript = `#!/bin/sh
set -eu
printf 'Package: usrmerge\nPin: release *\nPin-Priority: -1\n' > "$1/etc/apt/preferences.d/carrel-build"
`

// writeScripts puts what mmdebstrap needs into the work directory.
func writeScripts(d *Definition, work, sources string) error {
	for name, text := range map[string]string{"carrel.sources": sources, "dpkg.cfg": dpkgConfig} {
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for i, f := range d.Files {
		if err := os.WriteFile(filepath.Join(work, fmt.Sprintf("file-%d", i)), []byte(f.Content), 0o644); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{"setup.sh": setupScript, "customize.sh": customizeScript(d, work)} {
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// customizeScript writes the script that runs on the host with the new root as $1 once all packages are
// installed. Everything with a name from the definition happens inside of the root, where a link can lead nowhere else.
func customizeScript(d *Definition, work string) string {
	var s strings.Builder
	s.WriteString("#!/bin/sh\nset -eu\nroot=\"$1\"\n")
	s.WriteString(`rm -f "$root/etc/apt/preferences.d/carrel-build" "$root/etc/apt/apt.conf.d/99mmdebstrap"` + "\n")
	s.WriteString(`mv "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap" "$root/etc/dpkg/dpkg.cfg.d/carrel"` + "\n")
	// A program that begins looks for its locale there first, and else opens a dozen files, each of which costs in a sandbox.
	s.WriteString(`if [ -x "$root/usr/bin/localedef" ] && [ -d "$root/usr/lib/locale/C.utf8" ]; then chroot "$root" localedef --add-to-archive /usr/lib/locale/C.utf8 >&2; fi` + "\n")
	for i, f := range d.Files {
		fmt.Fprintf(&s, "chroot \"$root\" /bin/sh -euc 'mkdir -p -- \"$(dirname -- \"$1\")\"; cat > \"$1\"; chmod -- \"$2\" \"$1\"' sh %s %s < %s\n",
			quote(f.Path), quote(f.Mode), quote(filepath.Join(work, fmt.Sprintf("file-%d", i))))
	}
	for _, u := range d.Users {
		fmt.Fprintf(&s, "echo %s >&2\n", quote("carrel: user "+u.Name))
		fmt.Fprintf(&s, "chroot \"$root\" groupadd --gid %d %s\n", u.UID, quote(u.Name))
		groups := ""
		if len(u.Groups) > 0 {
			groups = "--groups " + quote(strings.Join(u.Groups, ",")) + " "
		}
		fmt.Fprintf(&s, "chroot \"$root\" useradd --uid %d --gid %d %s--home-dir %s --create-home --shell %s %s\n",
			u.UID, u.UID, groups, quote(u.Home), quote(u.Shell), quote(u.Name))
		if u.Sudo {
			file := quote("/etc/sudoers.d/" + u.Name)
			fmt.Fprintf(&s, "chroot \"$root\" /bin/sh -euc 'umask 227; printf \"%%s ALL=(ALL) NOPASSWD:ALL\\n\" \"$1\" > \"$2\"' sh %s %s\n", quote(u.Name), file)
		}
	}
	for i, command := range d.Run {
		fmt.Fprintf(&s, "echo 'carrel: command %d of %d' >&2\n", i+1, len(d.Run))
		fmt.Fprintf(&s, "unshare --net chroot \"$root\" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 /bin/sh -euc %s </dev/null || { echo 'carrel: command %d ended with an error' >&2; exit 1; }\n", quote(command), i+1)
	}
	return s.String()
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// buildLog reads what mmdebstrap, apt and dpkg print: it turns it into progress and keeps the end for errors.
type buildLog struct {
	progress    func(string)
	partial     []byte
	tail        []string
	downloading bool
	total       int // packages to install, as far as apt has said
	fetched     int
	installed   int
}

const tailLines = 60

var newlyInstalled = regexp.MustCompile(`(\d+) newly installed`)

// Write takes output in pieces of any size. Only one goroutine of os/exec calls it.
func (l *buildLog) Write(p []byte) (int, error) {
	l.partial = append(l.partial, p...)
	for {
		i := bytes.IndexAny(l.partial, "\r\n")
		if i < 0 {
			break
		}
		l.line(string(l.partial[:i]))
		l.partial = l.partial[i+1:]
	}
	if len(l.partial) > 64<<10 {
		l.line(string(l.partial))
		l.partial = nil
	}
	return len(p), nil
}

func (l *buildLog) line(line string) {
	line = printable(line)
	if strings.TrimSpace(line) == "" {
		return
	}
	l.tail = append(l.tail, line)
	if len(l.tail) > tailLines {
		l.tail = slices.Delete(l.tail, 0, len(l.tail)-tailLines)
	}
	switch {
	case strings.HasPrefix(line, "I: running apt-get update"):
		l.progress("reading Debian's package lists")
	case strings.HasPrefix(line, "I: downloading packages"), strings.HasPrefix(line, "I: installing remaining packages"):
		l.downloading = true
	case newlyInstalled.MatchString(line):
		n, err := strconv.Atoi(newlyInstalled.FindStringSubmatch(line)[1])
		if err == nil && l.downloading {
			l.total += n
		}
	case strings.HasPrefix(line, "Get:") && l.downloading:
		l.fetched++
		l.progress(fmt.Sprintf("downloading packages: %d of %d", min(l.fetched, l.total), l.total))
	case strings.HasPrefix(line, "Unpacking "):
		l.progress(fmt.Sprintf("unpacking packages: %d of %d are installed", min(l.installed, l.total), l.total))
	case strings.HasPrefix(line, "Setting up "):
		l.installed++
		l.progress(fmt.Sprintf("installing packages: %d of %d", min(l.installed, l.total), l.total))
	case strings.HasPrefix(line, "carrel: command "):
		l.progress("running " + strings.TrimPrefix(line, "carrel: "))
	case strings.HasPrefix(line, "carrel: user "):
		l.progress("adding users")
	case strings.HasPrefix(line, "I: creating tarball"):
		l.progress("collecting the files")
	}
}

func printable(s string) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > 400 {
		s = s[:400] + "…"
	}
	return s
}

var (
	noSpace      = regexp.MustCompile(`(?i)no space left on device|disk quota exceeded|not enough free space|don't have enough free space`)
	noPackage    = regexp.MustCompile(`Unable to locate package (\S+)|Version '(\S+)' for '\S+' was not found|Package '?(\S+?)'? has no installation candidate`)
	unreachable  = regexp.MustCompile(`(?i)could not resolve|temporary failure|could not connect|failed to fetch|unable to connect|connection (failed|refused|timed out)|network is unreachable`)
	conflict     = regexp.MustCompile(`(?i)unmet dependencies|held broken packages`)
	failedRun    = regexp.MustCompile(`^carrel: command (\d+) ended with an error`)
	errorLine    = regexp.MustCompile(`^(E:|Err:|dpkg: error|dpkg-deb: error|tar: )|(?i:error|cannot|could not|unable to|not found|failed)`)
	genericError = regexp.MustCompile(`^(E: (mmdebstrap failed|apt-get .* failed|.* failed: E:|setup failed|run_|env --chdir)|I: )`)
)

// explain turns a failed build into words.
func (l *buildLog) explain(d *Definition, cause error) error {
	if len(l.partial) > 0 {
		l.line(string(l.partial))
		l.partial = nil
	}
	all := strings.Join(l.tail, "\n")
	make := func(code carrel.Code, reason, format string, args ...any) error {
		e := carrel.Errorf(code, reason, format, args...)
		e.Cause = fmt.Errorf("%w; the log ends with: %s", cause, all)
		return e
	}
	if noSpace.MatchString(all) {
		return diskFull(fmt.Errorf("%w: %s", cause, l.meaningful(nil)))
	}
	for i, line := range l.tail {
		if m := failedRun.FindStringSubmatch(line); m != nil {
			return make(carrel.CodeInvalid, "image_command_failed", "command %s under run of the image %s ended with an error: %s", m[1], d.Name, l.meaningful(l.tail[max(0, i-5):i]))
		}
	}
	if m := noPackage.FindStringSubmatch(all); m != nil {
		name := m[1] + m[2] + m[3]
		return make(carrel.CodeInvalid, "package_not_found", "there is no package %q in Debian %s; correct packages in the image definition", name, d.Suite)
	}
	if conflict.MatchString(all) {
		return make(carrel.CodeInvalid, "packages_conflict", "the packages of the image %s cannot be installed together: %s", d.Name, l.meaningful(nil))
	}
	if unreachable.MatchString(all) {
		return make(carrel.CodeUnavailable, "packages_unreachable", "Debian's packages could not be fetched: %s. Check this machine's network and apt sources, then build again", l.meaningful(nil))
	}
	return make(carrel.CodePrecondition, "image_build_failed", "the image %s could not be built: %s", d.Name, l.meaningful(nil))
}

// meaningful returns the few lines that say what went wrong, out of lines or else of the end of the log.
func (l *buildLog) meaningful(lines []string) string {
	if lines == nil {
		for _, line := range l.tail {
			if errorLine.MatchString(line) && !genericError.MatchString(line) && !slices.Contains(lines, line) {
				lines = append(lines, line)
			}
		}
		if lines == nil {
			lines = l.tail
		}
	}
	if len(lines) > 5 {
		lines = lines[len(lines)-5:]
	}
	return strings.Join(lines, "; ")
}

// droppedFiles are of the moment of building only, in every Debian system.
var droppedFiles = []string{
	"etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-", "etc/.pwd.lock",
	"var/lib/dpkg/status-old", "var/lib/dpkg/available-old", "var/lib/dpkg/diversions-old", "var/lib/dpkg/statoverride-old",
	"var/cache/ldconfig/aux-cache", "var/cache/debconf/config.dat-old", "var/cache/debconf/templates.dat-old",
	"var/lib/apt/extended_states.lock", "var/lib/systemd/random-seed",
}

// normalize makes the tree of a fresh Debian system independent of when and where it was built, and returns its
// packages. Files of packages keep their times; what the build itself wrote, from begun on, gets the newest of those.
func (t *tree) normalize(begun time.Time) ([]string, error) {
	for _, name := range droppedFiles {
		if err := t.remove(strings.Split(name, "/")); err != nil {
			return nil, err
		}
	}
	if logs := t.lookup("/var/log"); logs != nil {
		for name, child := range logs.children {
			if child.isDir() {
				for file, inner := range child.children {
					if inner.mode.IsRegular() {
						delete(child.children, file)
					}
				}
			} else {
				delete(logs.children, name)
			}
		}
	}
	newest := time.Unix(0, 0)
	t.each(func(e *entry) {
		if e.mtime.Before(begun) && e.mtime.After(newest) {
			newest = e.mtime
		}
	})
	newest = newest.Truncate(time.Second)
	t.each(func(e *entry) {
		if e.mtime.After(newest) {
			e.mtime = newest
		}
	})
	if shadow := t.lookup("/etc/shadow"); shadow != nil {
		text, ok, err := shadow.text()
		if err != nil {
			return nil, err
		}
		if ok {
			text = fixedShadow(text)
			shadow.content = content{from: strings.NewReader(text), size: int64(len(text))}
		}
	}
	return t.packages()
}

// exclude removes what matches the patterns. It happens in the finished system and not as packages are unpacked,
// because what runs after that, such as Python's compiler, stops where a file of its package is missing.
func (t *tree) exclude(patterns []string) {
	if len(patterns) == 0 {
		return
	}
	var all []string
	for _, p := range patterns {
		p = regexp.QuoteMeta(p)
		p = strings.ReplaceAll(strings.ReplaceAll(p, `\*`, ".*"), `\?`, ".")
		all = append(all, p)
	}
	match := regexp.MustCompile("(?s)^(?:" + strings.Join(all, "|") + ")$") // every part is quoted
	var walk func(dir *entry, path string)
	walk = func(dir *entry, path string) {
		for name, child := range dir.children {
			if match.MatchString(path + "/" + name) {
				delete(dir.children, name)
				continue
			}
			walk(child, path+"/"+name)
		}
	}
	walk(t.root, "")
}

func (t *tree) each(f func(*entry)) {
	var walk func(*entry)
	walk = func(e *entry) {
		f(e)
		for _, c := range e.children {
			walk(c)
		}
	}
	walk(t.root)
}

// fixedShadow replaces the day of each password's last change.
func fixedShadow(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		fields := strings.Split(line, ":")
		if len(fields) == 9 && fields[2] != "" {
			fields[2] = "19000"
			lines[i] = strings.Join(fields, ":")
		}
	}
	return strings.Join(lines, "\n")
}

// packages reads the installed packages from dpkg's database, as name=version, sorted.
func (t *tree) packages() ([]string, error) {
	status := t.lookup("/var/lib/dpkg/status")
	if status == nil || !status.mode.IsRegular() {
		return nil, nil
	}
	scanner := bufio.NewScanner(io.NewSectionReader(orEmpty(status.content.from), status.content.offset, status.content.size))
	scanner.Buffer(nil, 1<<20)
	var all []string
	name, installed := "", false
	for scanner.Scan() {
		line := scanner.Text()
		key, value, _ := strings.Cut(line, ": ")
		switch key {
		case "Package":
			name, installed = value, false
		case "Status":
			installed = strings.HasSuffix(value, " installed")
		case "Version":
			if installed && name != "" {
				all = append(all, name+"="+value)
			}
		}
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("reading dpkg's status: %w", err)
	}
	slices.Sort(all)
	return all, nil
}

func orEmpty(r io.ReaderAt) io.ReaderAt {
	if r == nil {
		return strings.NewReader("")
	}
	return r
}

// environmentFile is what programs that begin a login session read.
func environmentFile(env map[string]string) string {
	var s strings.Builder
	for _, key := range sortedKeys(env) {
		fmt.Fprintf(&s, "%s=%q\n", key, env[key])
	}
	return s.String()
}

// diskFull is the error for a disk that has no room left for an image.
func diskFull(cause error) error {
	e := carrel.Errorf(carrel.CodeExhausted, "disk_full", "there is no room left on the disk for the image; remove images or other files, or give the data directory more room, then try again")
	e.Cause = cause
	return e
}

// explainIO turns a full disk into words and leaves other errors as they are.
func explainIO(err error) error {
	var known *carrel.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return diskFull(err)
	}
	return err
}
