package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/image"
	"carrel.dev/carrel/internal/node"
	"carrel.dev/carrel/internal/node/disk"
	"carrel.dev/carrel/internal/runtime/gvisor"
)

// leaveTime bounds taking prepared things back at the end.
const leaveTime = 5 * time.Second

func runNode(ctx context.Context, config *Config, stderr io.Writer) error {
	r := newRole(ctx, "node", config, stderr)
	c := config.Node
	size, err := poolSize(c)
	if err != nil {
		return err
	}
	pool, err := disk.Open(ctx, disk.Config{Dir: c.Dir, RunDir: c.RunDir, SizeBytes: size, Logger: r.log})
	if err != nil {
		return err
	}
	// Those of former versions stay for what still needs them, until the node sweeps them.
	programs := filepath.Join(c.Dir, "bin")
	runsc, _, err := disk.InstallBinary(programs, "runsc", c.Runsc)
	if err != nil {
		return err
	}
	boxes, err := gvisor.New(gvisor.Config{
		Runsc: runsc, Programs: programs, Root: c.RunDir, OverlayDir: pool.OverlayDir(), CgroupParent: "/carrel", Logger: r.log,
	})
	if err != nil {
		return err
	}
	images, err := newImages(c, pool)
	if err != nil {
		return err
	}
	daemon, err := node.New(node.Config{
		DataDir: c.Dir, RunDir: c.RunDir, Pool: pool, Runtime: boxes, Images: images, NetRange: c.NetRange,
		ControlURL: c.Control.URL, CAFile: c.Control.CAFile, JoinTokenFile: c.Control.TokenFile, Name: c.Name, Region: c.Region,
		ProxyAddress: c.ProxyAddress, ProxySocket: config.Proxy.Socket, AgentPath: c.Agent, Version: version,
		Logger: r.log, Metrics: r.registry,
	})
	if err != nil {
		return err
	}
	if err := r.serveOps(c.Ops, daemon.Ready); err != nil {
		return err
	}
	r.run(daemon.Run)
	err = r.wait()
	leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
	defer cancel()
	return errors.Join(err, daemon.Leave(leave))
}

// poolSize is what to reserve for homes and snapshots, in bytes: what is configured, else half of what is
// free where the pool will lie. A pool that is there already is never made smaller.
func poolSize(c NodeConfig) (int64, error) {
	if c.PoolSize != "" {
		return parseSize(c.PoolSize)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return 0, fmt.Errorf("make node directory: %w", err)
	}
	if info, err := os.Stat(filepath.Join(c.Dir, "pool.xfs")); err == nil {
		return info.Size(), nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("look at pool: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(c.Dir, &fs); err != nil {
		return 0, fmt.Errorf("look at disk: %w", err)
	}
	return max(int64(fs.Bavail)*fs.Bsize/2/carrel.GiB*carrel.GiB, disk.MinPool), nil
}

// keptPool is the size of a pool that is there and is larger than what is configured, in bytes; else 0.
func keptPool(c NodeConfig) (int64, error) {
	if c.PoolSize == "" {
		return 0, nil
	}
	asked, err := parseSize(c.PoolSize)
	if err != nil {
		return 0, err
	}
	info, err := os.Stat(filepath.Join(c.Dir, "pool.xfs"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("look at pool: %w", err)
	case info.Size() <= asked: // the node makes it larger
		return 0, nil
	}
	return info.Size(), nil
}

// nodeImages gives the node the image builder. With a directory of its own for images, what the node uses is
// copied into the pool.
type nodeImages struct {
	builder *image.Builder
	pool    *disk.Pool
	copies  bool
}

func newImages(c NodeConfig, pool *disk.Pool) (*nodeImages, error) {
	dir := c.ImageDir
	if dir == "" {
		dir = pool.ImageDir()
	}
	builder, err := image.New(image.Config{Dir: dir})
	if err != nil {
		return nil, err
	}
	return &nodeImages{builder: builder, pool: pool, copies: c.ImageDir != ""}, nil
}

func (i *nodeImages) Build(ctx context.Context, definition string, progress func(string)) (string, int64, error) {
	d, err := image.ParseDefinition([]byte(definition))
	if err != nil {
		return "", 0, err
	}
	result, err := i.builder.Build(ctx, d, progress)
	return i.take(result, err)
}

func (i *nodeImages) Import(ctx context.Context, from node.ImportSource, progress func(string)) (string, int64, error) {
	result, err := i.builder.Import(ctx, image.ImportRequest(from), progress)
	return i.take(result, err)
}

// take brings an image into the pool.
func (i *nodeImages) take(result image.Result, err error) (string, int64, error) {
	if err != nil {
		return "", 0, err
	}
	if !i.copies {
		return result.Digest, result.Size, nil
	}
	// The image itself comes last: with it the image is there.
	for _, from := range []string{strings.TrimSuffix(result.Path, ".erofs") + ".json", result.Path} {
		to := filepath.Join(i.pool.ImageDir(), filepath.Base(from))
		if _, err := os.Stat(to); err == nil {
			continue
		}
		if err := copyDurably(from, to); err != nil {
			return "", 0, fmt.Errorf("bring image into the pool: %w", err)
		}
	}
	return result.Digest, result.Size, nil
}

// copyDurably copies a file so that its new name appears only when all of it is on disk.
func copyDurably(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(to), ".copy-*")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Chmod(0o444)
	}
	if err == nil {
		err = out.Sync()
	}
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return disk.Publish(out.Name(), to)
}
