package carrel

import (
	"fmt"
	"strings"
)

// Size writes a number of bytes for people, rounded to a tenth of the unit: "1.5 GiB".
func Size(bytes int64) string {
	switch {
	case bytes >= GiB:
		return tenths(float64(bytes)/float64(GiB)) + " GiB"
	case bytes >= MiB:
		return tenths(float64(bytes)/float64(MiB)) + " MiB"
	}
	return fmt.Sprintf("%d bytes", bytes)
}

// Cores writes thousandths of a core for people: "1 core", "0.5 cores".
func Cores(millis int64) string {
	if millis == 1000 {
		return "1 core"
	}
	return tenths(float64(millis)/1000) + " cores"
}

func tenths(v float64) string { return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0") }
