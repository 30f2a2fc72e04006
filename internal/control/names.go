package control

import (
	"fmt"
	"math/rand/v2"
)

// The words that made-up names of boxes are put together from: short, plain, friendly in every order.
var (
	adjectives = []string{
		"able", "amber", "bold", "brave", "bright", "brisk", "calm", "clear", "clever", "cosy", "crisp", "dapper", "eager", "early",
		"fair", "fancy", "fleet", "fond", "fresh", "gentle", "glad", "golden", "grand", "happy", "hardy", "humble", "jolly", "keen",
		"kind", "light", "lively", "lucky", "mellow", "merry", "mild", "neat", "nimble", "noble", "patient", "plucky", "polite",
		"proud", "quick", "quiet", "rapid", "ready", "rosy", "silver", "smart", "snug", "spry", "steady", "sunny", "swift", "tidy",
		"trusty", "vivid", "warm", "witty", "young",
	}
	nouns = []string{
		"alder", "aspen", "badger", "beech", "birch", "brook", "cedar", "comet", "coral", "crane", "dune", "falcon", "fern", "finch",
		"fjord", "garnet", "glade", "grove", "harbor", "hazel", "heron", "island", "ivy", "jasper", "juniper", "kestrel", "lagoon",
		"lark", "laurel", "linden", "lynx", "maple", "marten", "meadow", "moss", "oak", "opal", "otter", "owl", "pebble", "pine",
		"plover", "poplar", "quartz", "raven", "reef", "river", "robin", "rowan", "sparrow", "spruce", "stone", "swan", "thistle",
		"thrush", "tulip", "valley", "willow", "wren", "yew",
	}
)

// inventName makes a name such as brisk-otter-417.
func inventName() string {
	return fmt.Sprintf("%s-%s-%d", adjectives[rand.IntN(len(adjectives))], nouns[rand.IntN(len(nouns))], 100+rand.IntN(900)) //nolint:gosec // a name is no secret
}
