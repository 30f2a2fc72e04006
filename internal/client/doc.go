// Package client speaks to a Carrel gateway: the CLI, the tests and the benchmark stand on it. It keeps
// contexts (named addresses with their tokens) in one file, makes calls with request ids and bounded
// retries, turns every answer into *carrel.Error, and runs commands in boxes so that a broken connection
// loses and doubles no byte. It must not know how a server works, and it prints nothing. Words: a context
// is where and as whom one speaks; a ticket is the short-lived right to reach one box; a session is one
// Exec or Attach across all of its connections.
package client
