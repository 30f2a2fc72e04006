// Command hold is a program for tests: it holds as many MiB of memory as its argument says and writes to the file
// count in its home how often it has counted, and the sum of its memory, every 20 ms.
package main

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"strconv"
	"time"
)

func main() {
	mib, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	memory := make([]byte, mib<<20)
	_, _ = rand.Read(memory)
	for n := 1; ; n++ {
		sum := sha256.Sum256(memory[:min(len(memory), 1<<20)])
		text := fmt.Sprintf("%d %d %x\n", os.Getpid(), n, sum[:4])
		if err := os.WriteFile("count.tmp", []byte(text), 0o600); err != nil {
			panic(err)
		}
		if err := os.Rename("count.tmp", "count"); err != nil {
			panic(err)
		}
		if len(os.Args) > 2 { // once
			fmt.Print(text)
			return
		}
		time.Sleep(20 * time.Millisecond) // its pace, so that it leaves the processor to what is tested
	}
}
