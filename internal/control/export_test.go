package control

import "time"

// SetStreamWrite changes how long one message of a stream may take. To be called before a stream begins.
func (s *Server) SetStreamWrite(d time.Duration) { s.streamWrite = d }

// Watchers is how many watch or wait.
func (s *Server) Watchers() int { return s.hub.count() }

// SetWatchCheck changes how often it is looked at whether a watcher still may. To be called before a stream begins.
func (s *Server) SetWatchCheck(d time.Duration) { s.watchCheck = d }
