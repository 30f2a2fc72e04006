package notebook

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
)

const jsonFour = json.Number("4")

func countValue(count int32) any {
	if count <= 0 {
		return nil
	}
	return json.Number(strconv.Itoa(int(count)))
}

func leftOut(size int64) string {
	return fmt.Sprintf("[an output of %d bytes is left out here; the notebook's file has it]\n", size)
}

// leaveOut chooses outputs, from the largest down, so that the others are at most limit bytes; it gives the size of each.
func (c *content) leaveOut(limit int64) map[*output]int64 {
	type sized struct {
		out  *output
		size int64
	}
	var all []sized
	total := int64(0)
	for _, one := range c.cells {
		if one.outputs == nil {
			continue
		}
		for _, out := range one.outputs.list {
			size := int64(len(out.said())) + sizeOf(out.fields)
			total += size
			all = append(all, sized{out, size})
		}
	}
	if total <= limit {
		return nil
	}
	slices.SortStableFunc(all, func(a, b sized) int { return cmp.Compare(b.size, a.size) })
	left := map[*output]int64{}
	for _, one := range all {
		if total <= limit {
			break
		}
		left[one.out] = one.size
		total -= one.size
	}
	return left
}

// sizeOf gives about how many bytes JSON has.
func sizeOf(value any) int64 {
	size := int64(2)
	switch value := value.(type) {
	case map[string]any:
		for name, inner := range value {
			size += int64(len(name)) + 4 + sizeOf(inner)
		}
	case []any:
		for _, inner := range value {
			size += 1 + sizeOf(inner)
		}
	case string:
		size += int64(len(value))
	case json.Number:
		size += int64(len(value))
	}
	return size
}
