package journal_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/agent/notebook/journal"
)

func open(t testing.TB, dir string, change func(*journal.Config)) *journal.Journal {
	t.Helper()
	config := journal.Config{Dir: dir, Owner: "box", Log: slog.New(slog.DiscardHandler), Flush: time.Millisecond}
	if change != nil {
		change(&config)
	}
	j, err := journal.Open(config)
	require.NoError(t, err)
	t.Cleanup(j.Close)
	return j
}

func flush(t testing.TB, j *journal.Journal) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	require.NoError(t, j.Flush(ctx))
}

// read gives everything behind a cursor that is there now: entries, and "gap".
func read(t testing.TB, j *journal.Journal, cursor string) (all []string, last string) {
	t.Helper()
	r, ok := j.Read(cursor)
	require.True(t, ok, cursor)
	defer r.Close()
	for {
		entries, gap, wait, err := r.Next()
		require.NoError(t, err)
		if wait != nil {
			return all, last
		}
		if gap != "" {
			all, last = append(all, "gap"), gap
		}
		for _, entry := range entries {
			all, last = append(all, string(entry.Data)), entry.Cursor
		}
	}
}

func fill(j *journal.Journal, from, to int) (cursors []string) {
	for i := from; i < to; i++ {
		cursors = append(cursors, j.Append(fmt.Appendf(nil, "entry %d", i), nil))
	}
	return cursors
}

func numbers(from, to int) (all []string) {
	for i := from; i < to; i++ {
		all = append(all, fmt.Sprintf("entry %d", i))
	}
	return all
}

func segments(t testing.TB, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*.journal"))
	require.NoError(t, err)
	slices.Sort(all)
	return all
}

func small(c *journal.Config) { c.SegmentBytes, c.TailBytes = 512, 64 }

func TestEntriesAreReadFromAnyCursorInMemoryAndOnTheDisk(t *testing.T) {
	j := open(t, t.TempDir(), small)
	cursors := fill(j, 0, 200)
	flush(t, j)
	for _, from := range []int{0, 1, 57, 198, 199} {
		got, _ := read(t, j, cursors[from])
		require.Equal(t, numbers(from+1, 200), got)
	}
	got, last := read(t, j, "0")
	require.Equal(t, numbers(0, 200), got)
	require.Equal(t, j.Last(), last)
	got, _ = read(t, j, "")
	require.Empty(t, got)
	for _, bad := range []string{"x", ".", ".5", "x.", "x.-1", "x.y", "x.99999999999999999999"} {
		_, ok := j.Read(bad)
		require.False(t, ok, bad)
	}
}

func TestReadersAreWokenAndEnd(t *testing.T) {
	j := open(t, t.TempDir(), nil)
	r, ok := j.Read("")
	require.True(t, ok)
	_, _, wait, err := r.Next()
	require.NoError(t, err)
	j.Append([]byte("x"), "value")
	<-wait
	entries, _, _, err := r.Next()
	require.NoError(t, err)
	require.Equal(t, "value", entries[0].Value)
	_, _, wait, err = r.Next()
	require.NoError(t, err)
	j.Close()
	<-wait
	_, _, _, err = r.Next()
	require.ErrorIs(t, err, journal.ErrClosed)
}

func TestTheOldestIsDroppedAndAGapTold(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, func(c *journal.Config) { small(c); c.MaxBytes = 2048 })
	cursors := fill(j, 0, 1)
	for i := 1; i < 400; i += 10 { // segments are no larger than what is written at once
		fill(j, i, i+10)
		flush(t, j)
	}
	total := int64(0)
	for _, path := range segments(t, dir) {
		info, err := os.Stat(path)
		require.NoError(t, err)
		total += info.Size()
	}
	require.LessOrEqual(t, total, int64(4096))
	got, _ := read(t, j, cursors[0])
	require.Equal(t, "gap", got[0])
	require.Equal(t, numbers(401-len(got)+1, 401), got[1:], "what is kept follows the gap without another")
	require.Greater(t, len(got), 10)
}

func TestAJournalThatWasClosedGoesOn(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, nil)
	cursors := fill(j, 0, 10)
	j.Close()
	j = open(t, dir, nil)
	require.Equal(t, cursors[9], j.Last())
	fill(j, 10, 20)
	got, _ := read(t, j, cursors[4])
	require.Equal(t, numbers(5, 20), got)
}

// TestNoCursorEverMeansTwoEntries promises that who has seen what a crash took with it is told of a gap.
func TestNoCursorEverMeansTwoEntries(t *testing.T) {
	dir, later := t.TempDir(), t.TempDir()
	j := open(t, dir, nil)
	cursors := fill(j, 0, 10)
	flush(t, j)
	require.NoError(t, os.CopyFS(later, os.DirFS(dir))) // as after a power failure
	cursors = append(cursors, fill(j, 10, 20)...)
	flush(t, j)

	after := open(t, later, nil)
	fill(after, 100, 105)
	got, _ := read(t, after, cursors[4])
	require.Equal(t, append(numbers(5, 10), numbers(100, 105)...), got)
	got, _ = read(t, after, cursors[9])
	require.Equal(t, numbers(100, 105), got, "everything that was on the disk was seen: nothing is missing")
	got, _ = read(t, after, cursors[15])
	require.Equal(t, append([]string{"gap"}, numbers(100, 105)...), got)
}

// TestNoCursorMeansTwoEntriesAfterACloseEither promises it for what comes after a journal that was closed as it should be and was opened again.
func TestNoCursorMeansTwoEntriesAfterACloseEither(t *testing.T) {
	dir, later := t.TempDir(), t.TempDir()
	j := open(t, dir, nil)
	cursors := fill(j, 0, 10)
	j.Close()
	j = open(t, dir, nil)
	flush(t, j)
	require.NoError(t, os.CopyFS(later, os.DirFS(dir))) // what comes now never reaches the disk
	cursors = append(cursors, fill(j, 10, 20)...)

	after := open(t, later, nil)
	fill(after, 100, 120)
	got, _ := read(t, after, cursors[15])
	require.Equal(t, append([]string{"gap"}, numbers(100, 120)...), got)
	got, _ = read(t, after, cursors[9])
	require.Equal(t, numbers(100, 120), got, "everything that was on the disk was seen: nothing is missing")
}

// TestNoCursorMeansTwoEntriesInACopyOfMemory promises it for a box that is restored twice from one snapshot.
func TestNoCursorMeansTwoEntriesInACopyOfMemory(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, nil)
	cursors := fill(j, 0, 10)
	flush(t, j)
	fill(j, 10, 12) // these wait to be written
	id, _, _ := strings.Cut(cursors[0], ".")
	j.Fork()
	cursors = append(cursors, fill(j, 100, 120)...)
	for again := range 2 {
		got, _ := read(t, j, id+".12") // the last of before
		require.Equal(t, numbers(100, 120), got, "nothing is missing")
		got, _ = read(t, j, id+".15") // seen in the other life
		require.Equal(t, append([]string{"gap"}, numbers(100, 120)...), got)
		got, _ = read(t, j, cursors[10])
		require.Equal(t, numbers(101, 120), got)
		if again == 0 {
			j.Close()
			j = open(t, dir, nil)
		}
	}
}

// TestMuchThatHasNotEndedDoesNotSpoilTheJournal promises that a state that is too long to be read again is not written.
func TestMuchThatHasNotEndedDoesNotSpoilTheJournal(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, func(c *journal.Config) {
		small(c)
		c.State = func() []byte { return make([]byte, 5<<20) }
	})
	for i := 0; i < 100; i += 5 {
		fill(j, i, i+5)
		flush(t, j)
	}
	got, _ := read(t, j, "0")
	require.Equal(t, numbers(0, 100), got)
	j.Close()
	got, _ = read(t, open(t, dir, nil), "0")
	require.Equal(t, numbers(0, 100), got)
}

// TestWhatCannotBeReadNowIsNotThrownAway promises that a failing disk, or too many open files, costs nobody what is written.
func TestWhatCannotBeReadNowIsNotThrownAway(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, nil)
	fill(j, 0, 10)
	j.Close()
	path := segments(t, dir)[0]
	var once sync.Once
	j = open(t, dir, func(c *journal.Config) {
		c.AsUser = func(f func() error) (err error) {
			limited := false
			once.Do(func() { limited, err = true, withoutMoreFiles(t, f) })
			if limited {
				return err
			}
			return f()
		}
	})
	require.FileExists(t, path)
	j.Close()
	got, _ := read(t, open(t, dir, nil), "0")
	require.Equal(t, numbers(0, 10), got)
}

func TestOpeningLeavesFewFiles(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, nil)
	fill(j, 0, 10)
	j.Close()
	for range 50 {
		j = open(t, dir, nil)
		flush(t, j)
		j.Close()
	}
	require.Less(t, len(segments(t, dir)), 30)
	got, _ := read(t, open(t, dir, nil), "0")
	require.Equal(t, numbers(0, 10), got)
}

// withoutMoreFiles calls f while the process may open one file more, and no second one.
func withoutMoreFiles(t *testing.T, f func() error) error {
	var before unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	low := before
	file, err := os.Open("/")
	require.NoError(t, err)
	low.Cur = uint64(file.Fd()) + 1 // the lowest number that is free is given
	require.NoError(t, file.Close())
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	defer func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before)) }()
	return f()
}

func TestDamageIsAGap(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, path string){
		"torn":  func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 300)) },
		"empty": func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 0)) },
		"gone":  func(t *testing.T, path string) { require.NoError(t, os.Remove(path)) },
		"foreign": func(t *testing.T, path string) {
			require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte("x"), 600), 0o600))
		},
		"flipped": func(t *testing.T, path string) {
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			data[len(data)/2] ^= 1
			require.NoError(t, os.WriteFile(path, data, 0o600))
		},
		"a link": func(t *testing.T, path string) {
			require.NoError(t, os.Rename(path, path+".moved"))
			require.NoError(t, os.Symlink("/etc/passwd", path))
		},
		"a directory": func(t *testing.T, path string) {
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.Mkdir(path, 0o700))
		},
	} {
		for _, open2 := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " opened again ", open2), func(t *testing.T) {
				dir := t.TempDir()
				j := open(t, dir, small)
				for i := 0; i < 100; i += 5 {
					fill(j, i, i+5)
					flush(t, j)
				}
				middle := segments(t, dir)[1]
				if open2 {
					j.Close()
				}
				damage(t, middle)
				if open2 {
					j = open(t, dir, small)
				}
				fill(j, 100, 105)
				got, _ := read(t, j, "0")
				require.Contains(t, got, "gap")
				require.Equal(t, "entry 0", got[0])
				require.Equal(t, numbers(95, 105), got[len(got)-10:])
				seen := map[string]bool{}
				for _, entry := range got {
					require.False(t, entry != "gap" && seen[entry], "%s twice", entry)
					seen[entry] = true
				}
			})
		}
	}
}

func TestRecoverIsGivenTheStateAndWhatFollows(t *testing.T) {
	dir := t.TempDir()
	states := 0
	j := open(t, dir, func(c *journal.Config) {
		small(c)
		c.State = func() []byte { states++; return fmt.Appendf(nil, "state %d", states) }
	})
	for i := 0; i < 100; i += 5 {
		fill(j, i, i+5)
		flush(t, j)
	}
	j.Close()
	var got []string
	open(t, dir, func(c *journal.Config) {
		c.Recover = func(state []byte, entries func(func(uint64, []byte))) {
			got = append(got, string(state))
			entries(func(_ uint64, data []byte) { got = append(got, string(data)) })
		}
	})
	require.Equal(t, fmt.Sprintf("state %d", states), got[0])
	require.Equal(t, "entry 99", got[len(got)-1])
	require.Less(t, len(got), 100)
}

func TestAnotherOwnerBeginsAnew(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, nil)
	cursors := fill(j, 0, 5)
	j.Close()
	j = open(t, dir, func(c *journal.Config) { c.Owner = "other" })
	got, _ := read(t, j, "0")
	require.Empty(t, got)
	got, _ = read(t, j, cursors[0])
	require.Equal(t, []string{"gap"}, got)
}

func TestWithoutADirectoryItIsInMemory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(dir, nil, 0o600))
	j := open(t, dir, nil)
	fill(j, 0, 5)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	require.Error(t, j.Flush(ctx))
	require.NotEmpty(t, j.Problem())
	got, _ := read(t, j, "0")
	require.Equal(t, numbers(0, 5), got)
	require.NoError(t, os.Remove(dir))
	require.NoError(t, j.Flush(ctx))
	require.Empty(t, j.Problem())
}

// FuzzSegment opens a journal that somebody else has written: it must not fail, nor give more than is there.
func FuzzSegment(f *testing.F) {
	dir := f.TempDir()
	j := open(f, dir, nil)
	fill(j, 0, 3)
	flush(f, j)
	j.Close()
	good, err := os.ReadFile(segments(f, dir)[0])
	require.NoError(f, err)
	f.Add(good)
	f.Add(good[:len(good)-3])
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 'h'})
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%020d.journal", 1)), data, 0o600))
		j := open(t, dir, nil)
		j.Append([]byte("new"), nil)
		got, _ := read(t, j, "0")
		require.Equal(t, "new", got[len(got)-1])
	})
}
