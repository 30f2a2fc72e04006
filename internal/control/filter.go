package control

import (
	"slices"
	"strings"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

const maxFilter = 4 << 10

// parseFilter reads a filter of ListBoxes into list: terms joined by AND, each KEY=VALUE, the value in double quotes
// if it has spaces. Errors are CodeInvalid.
func parseFilter(text string, list *store.ListBoxes) error {
	if len(text) > maxFilter {
		return badFilter("it is longer than %d bytes", maxFilter)
	}
	rest := strings.TrimSpace(text)
	for rest != "" {
		key, after, ok := strings.Cut(rest, "=")
		if !ok {
			return badFilter("%q is no KEY=VALUE", rest)
		}
		value, after, err := filterValue(after)
		if err != nil {
			return err
		}
		if err := addTerm(strings.TrimSpace(key), value, list); err != nil {
			return err
		}
		rest = strings.TrimLeft(after, " ")
		if rest == "" {
			return nil
		}
		next, joined := strings.CutPrefix(rest, "AND ")
		if !joined {
			return badFilter("terms are joined by AND, not by %q", firstWord(rest))
		}
		rest = strings.TrimSpace(next)
		if rest == "" {
			return badFilter("nothing follows the last AND")
		}
	}
	return nil
}

func filterValue(s string) (value, rest string, err error) {
	if quoted, ok := strings.CutPrefix(s, `"`); ok {
		value, rest, ok := strings.Cut(quoted, `"`)
		if !ok {
			return "", "", badFilter("a quotation mark is not closed")
		}
		return value, rest, nil
	}
	value, rest, _ = strings.Cut(s, " ")
	return value, rest, nil
}

func firstWord(s string) string {
	word, _, _ := strings.Cut(s, " ")
	return word
}

func addTerm(key, value string, list *store.ListBoxes) error {
	if label, ok := strings.CutPrefix(key, "label."); ok {
		if err := carrel.ValidateLabels(map[string]string{label: value}); err != nil {
			return err
		}
		if _, twice := list.Labels[label]; twice {
			return badFilter("%s is given twice", key)
		}
		if list.Labels == nil {
			list.Labels = map[string]string{}
		}
		list.Labels[label] = value
		return nil
	}
	if value == "" {
		return badFilter("%s has no value", key)
	}
	var field *string
	switch key {
	case "state":
		name := strings.TrimPrefix(strings.ToUpper(value), "STATE_")
		if _, ok := carrelv1.State_value["STATE_"+name]; !ok || name == "UNSPECIFIED" {
			return badFilter("%q is no state of a box", value)
		}
		if len(list.State) > 0 {
			return badFilter("state is given twice")
		}
		list.State = []carrel.State{carrel.State(name)}
		return nil
	case "template":
		field = &list.Template
	case "name":
		field = &list.Name
	case "owner":
		if carrel.IDKind(value) != 'u' {
			return badFilter("owner must be the id of a user")
		}
		field = (*string)(&list.Owner)
	default:
		return badFilter("there is nothing called %q; use state, template, owner, name or label.KEY", key)
	}
	if *field != "" {
		return badFilter("%s is given twice", key)
	}
	*field = value
	return nil
}

var orders = []string{"", "name", "name desc", "create_time", "create_time desc", "update_time", "update_time desc"}

func checkOrder(order string) error {
	if !slices.Contains(orders, order) {
		return carrel.Errorf(carrel.CodeInvalid, "bad_order", "boxes can't be ordered by %q; use name, create_time or update_time, with \" desc\" for the other way round", order)
	}
	return nil
}

func badFilter(format string, args ...any) error {
	e := carrel.Errorf(carrel.CodeInvalid, "bad_filter", format, args...)
	e.Message = "the filter can't be read: " + e.Message + `. Write for example: state=RUNNING AND template=python AND label.team="data science"`
	return e
}
