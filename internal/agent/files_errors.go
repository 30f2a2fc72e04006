package agent

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/archive"
	"carrel.dev/carrel/internal/carrel"
)

// fileErrors is what each error of the file system is for a person. %[1]s is what was to be done, %[2]q the path.
var fileErrors = []struct {
	errno  unix.Errno
	code   carrel.Code
	reason string
	text   string
}{
	{unix.ENOENT, carrel.CodeNotFound, "file_not_found", "there is no %[2]q in the box"},
	{unix.EACCES, carrel.CodeDenied, "file_denied", "the box's user may not %[1]s %[2]q"},
	{unix.EPERM, carrel.CodeDenied, "file_denied", "the box's user may not %[1]s %[2]q"},
	{unix.EROFS, carrel.CodeDenied, "read_only", "%[2]q lies on a part of the box that cannot be written"},
	{unix.ENOSPC, carrel.CodeExhausted, "disk_full", "the disk of the box that would have %[2]q is full; remove something there, or update the box with a larger one"},
	{unix.EDQUOT, carrel.CodeExhausted, "disk_full", "the disk of the box that would have %[2]q is full; remove something there, or update the box with a larger one"},
	{unix.EFBIG, carrel.CodeExhausted, "file_too_large", "%[2]q would be larger than a file can be"},
	{unix.EEXIST, carrel.CodeExists, "file_exists", "%[2]q is there already"},
	{unix.ENOTEMPTY, carrel.CodePrecondition, "directory_not_empty", "the directory %[2]q is not empty; say that what is in it is meant too"},
	{unix.EISDIR, carrel.CodePrecondition, "is_directory", "%[2]q is a directory"},
	{unix.ENOTDIR, carrel.CodePrecondition, "not_a_directory", "%[2]q, or something on the way to it, is no directory"},
	{unix.ELOOP, carrel.CodeInvalid, "too_many_links", "%[2]q leads through too many symbolic links"},
	{unix.ENAMETOOLONG, carrel.CodeInvalid, "bad_path", "a part of %[2]q is longer than a name may be"},
	{unix.EINVAL, carrel.CodeInvalid, "bad_path", "the box cannot %[1]s %[2]q: the file system does not take this"},
	{unix.EBUSY, carrel.CodePrecondition, "file_busy", "%[2]q is in use by the box itself"},
	{unix.ETXTBSY, carrel.CodePrecondition, "file_busy", "%[2]q is a program that runs"},
	{unix.EMFILE, carrel.CodeExhausted, "too_many_open_files", "the box has too many files open to %[1]s %[2]q; close some"},
	{unix.ENFILE, carrel.CodeExhausted, "too_many_open_files", "the box has too many files open to %[1]s %[2]q; close some"},
	{unix.ENOMEM, carrel.CodeExhausted, "out_of_memory", "the box has no memory left to %[1]s %[2]q; end something"},
}

// fileError says what an error of the file system means. do is a verb, such as "write". Errors that are fit to be shown stay.
func fileError(do, path string, err error) error {
	if err == nil {
		return nil
	}
	var own *carrel.Error
	if errors.As(err, &own) {
		return err
	}
	for _, known := range fileErrors {
		if errors.Is(err, known.errno) {
			e := carrel.Errorf(known.code, known.reason, known.text, do, shown(path))
			e.Metadata, e.Cause = map[string]string{"path": shown(path)}, err
			return e
		}
	}
	return fmt.Errorf("%s %q: %w", do, path, err)
}

// archiveError says what went wrong with an archive of a path.
func archiveError(do, path string, err error) error {
	if errors.Is(err, archive.ErrRefused) {
		return &carrel.Error{Code: carrel.CodeInvalid, Reason: "bad_archive", Message: err.Error(), Cause: err}
	}
	var at *fs.PathError
	if errors.As(err, &at) && at.Path != "" && at.Path != "." && at.Path != path {
		path += "/" + at.Path
	}
	return fileError(do, path, err)
}
