// Package auth says who someone is and what they may do: principals and the one policy table, API
// tokens, tickets for the data plane, the certificate authority of a cluster and the keyring that
// wraps root keys. It must not touch the network, the database or any state of a box; whoever uses it
// stores and sends what it makes. Words: a principal is a user or a peer that has proved itself; a role
// is what a user is in one organisation; an operator looks after the platform and is nothing in an
// organisation by that; a peer is another part of Carrel, known by its certificate; a ticket is a signed,
// short right to reach one box, checked without asking anyone.
package auth
