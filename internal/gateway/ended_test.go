package gateway

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

func TestASignedURLEndsWithItsTimeAndAPublicPortDoesNot(t *testing.T) {
	now := time.Now()
	g := &Gateway{now: func() time.Time { return now }, grants: &grantTable{}, routes: &routeTable{}}
	p := pass{Ticket: auth.Ticket{Box: carrel.NewBoxID(), Epoch: 1, Expires: now.Add(time.Minute)}, header: headerPortPass}
	require.NoError(t, g.ended(p))
	now = now.Add(time.Minute)
	require.Equal(t, "url_expired", carrel.ReasonOf(g.ended(p)))
	p.openPort = 80 // its pass is told again and again
	require.NoError(t, g.ended(p))
}
