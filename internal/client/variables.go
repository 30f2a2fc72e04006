package client

import (
	"fmt"
	"slices"
	"strings"
)

// EnvServerConfig names the configuration file of a server. Clients do not read it; it is EnvConfig but for one letter, and no slip.
const EnvServerConfig = "CARRELD_CONFIG"

// Variables are the environment variables that clients know.
var Variables = []string{EnvURL, EnvToken, EnvContext, EnvOrg, EnvConfig, EnvServerConfig}

// UnreadVariable is a variable of the environment that is named as Carrel's are, and that nothing of Carrel's reads.
type UnreadVariable struct {
	Name string
	// Meant is the variable that was probably meant; empty: none is near.
	Meant string
}

// String says it to a person.
func (v UnreadVariable) String() string {
	if v.Meant == "" {
		return fmt.Sprintf("%s is set in the environment, and Carrel reads no such variable", v.Name)
	}
	return fmt.Sprintf("%s is set in the environment, and Carrel reads no such variable; did you mean %s?", v.Name, v.Meant)
}

// UnreadVariables finds those among env, NAME=VALUE each, that begin with CARREL and are not in known, by name.
func UnreadVariables(env, known []string) []UnreadVariable {
	var result []UnreadVariable
	for _, entry := range env {
		name, _, _ := strings.Cut(entry, "=")
		upper := strings.ToUpper(name)
		if !strings.HasPrefix(upper, "CARREL") || slices.Contains(known, name) {
			continue
		}
		unread, least := UnreadVariable{Name: name}, 3
		for _, candidate := range known {
			if n := mistakes(upper, candidate); n < least && n <= tolerated(candidate) {
				unread.Meant, least = candidate, n
			}
		}
		result = append(result, unread)
	}
	slices.SortFunc(result, func(a, b UnreadVariable) int { return strings.Compare(a.Name, b.Name) })
	return result
}

// tolerated is how many slips of the keyboard are believed in a name: of two, what is left of a short one could be another word.
func tolerated(name string) int {
	if _, own, _ := strings.Cut(name, "_"); len(own) <= 4 {
		return 1
	}
	return 2
}

// mistakes is how many characters are missing, too many, wrong, or in the place of their neighbour.
func mistakes(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			wrong := 1
			if a[i] == b[j] {
				wrong = 0
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, last[j]+wrong)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
