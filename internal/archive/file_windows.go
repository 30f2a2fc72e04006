package archive

import (
	"io/fs"
	"os"
)

const readFlags = os.O_RDONLY

type fileID struct{}

func identify(fs.FileInfo) (fileID, bool) { return fileID{}, false }
