// Package control is the API of Carrel and the links of its nodes and gateways: it checks who asks and
// whether they may, turns requests into intent in the store, and turns what the store knows into answers.
// It must not wait for a machine (only WaitBox waits, for a change in the store), start or place
// anything, or carry the bytes of a box. Replicas are alike and know nothing of each other.
//
// Words: access is who makes a request and what the policy table says of its method; a link is the
// service that a node or gateway speaks with its certificate; settled is said of a report of a phase in which a
// run stays until somebody wants something else.
//
// errors.go is the only place where errors become answers, convert.go and convertlink.go the only ones where
// messages become values of the vocabulary and back.
package control
