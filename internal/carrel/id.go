package carrel

import (
	"crypto/rand"
	"regexp"
)

// Ids are 20 characters of [a-z0-9], the first by kind, the rest random (98 bits): fit for a DNS
// label, fixed in length so that none is a prefix of another (gVisor matches ids by prefix).
type (
	OrgID       string
	UserID      string
	TokenID     string
	TemplateID  string
	ImageID     string
	BoxID       string
	RunID       string
	NodeID      string
	GatewayID   string
	SnapshotID  string
	OperationID string
	ChoreID     string
	EventID     string
)

// IDLength is the length of every id, in characters.
const IDLength = 20

const idAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789"

func newID(kind byte) string {
	id := make([]byte, 0, IDLength)
	id = append(id, kind)
	var buf [64]byte
	for {
		_, _ = rand.Read(buf[:]) // never fails: crypto/rand ends the process instead
		for _, b := range buf {
			// 252 is the largest multiple of 36 in a byte: above it letters would not be equally likely.
			if b >= 252 {
				continue
			}
			id = append(id, idAlphabet[b%36])
			if len(id) == IDLength {
				return string(id)
			}
		}
	}
}

func NewOrgID() OrgID             { return OrgID(newID('o')) }
func NewUserID() UserID           { return UserID(newID('u')) }
func NewTokenID() TokenID         { return TokenID(newID('t')) }
func NewTemplateID() TemplateID   { return TemplateID(newID('m')) }
func NewImageID() ImageID         { return ImageID(newID('i')) }
func NewBoxID() BoxID             { return BoxID(newID('b')) }
func NewRunID() RunID             { return RunID(newID('r')) }
func NewNodeID() NodeID           { return NodeID(newID('n')) }
func NewGatewayID() GatewayID     { return GatewayID(newID('g')) }
func NewSnapshotID() SnapshotID   { return SnapshotID(newID('s')) }
func NewOperationID() OperationID { return OperationID(newID('p')) }
func NewChoreID() ChoreID         { return ChoreID(newID('c')) }
func NewEventID() EventID         { return EventID(newID('e')) }
func NewSSHKeyID() string         { return newID('k') }

var idPattern = regexp.MustCompile(`^[a-z][a-z0-9]{19}$`)

// IDKind returns the first letter of a well-formed id, and 0 for anything else. A name can look like
// an id: ValidateName refuses those.
func IDKind(s string) byte {
	if !idPattern.MatchString(s) {
		return 0
	}
	return s[0]
}
