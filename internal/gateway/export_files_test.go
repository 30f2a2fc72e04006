package gateway

import "carrel.dev/carrel/internal/carrel"

// WorkedIn reports whether it was noted, since this was last asked, that somebody worked in a box.
func WorkedIn(g *Gateway, box carrel.BoxID) bool {
	t := g.toucher
	t.mu.Lock()
	defer t.mu.Unlock()
	key := activityKey{box, activityExec}
	noted := t.known[key]
	if noted != nil && noted.timer != nil {
		noted.timer.Stop()
	}
	delete(t.known, key)
	return noted != nil
}
