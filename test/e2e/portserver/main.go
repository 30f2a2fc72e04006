// Command portserver is a web server for the inside of a box, in tests and benchmarks. It must not depend on anything in the box.
package main

import (
	"fmt"
	"net/http"
	"os"
)

func main() {
	page := make([]byte, 1024)
	for i := range page {
		page[i] = 'a' + byte(i%26)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(page) })
	if err := http.ListenAndServe(os.Args[1], nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
