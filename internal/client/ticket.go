package client

import (
	"context"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

// Ticket answers with a ticket for everything in the box (id or name), from the cache while it is
// good. While control does not answer, one that has not expired goes on being used.
func (c *Client) Ticket(ctx context.Context, box string) (Ticket, error) {
	slot := c.tickets.slot(box)
	slot.mu.Lock()
	defer slot.mu.Unlock()
	now := c.now()
	if now.Before(slot.ticket.Expires.Add(-ticketMargin)) {
		return slot.ticket, nil
	}
	resp, err := c.Boxes.CreateTicket(ctx, connect.NewRequest(&carrelv1.CreateTicketRequest{Id: box}))
	if err != nil {
		if carrel.CodeOf(err) == carrel.CodeUnavailable && now.Before(slot.ticket.Expires) {
			return slot.ticket, nil
		}
		return Ticket{}, err
	}
	slot.ticket = Ticket{Box: resp.Msg.GetBoxId(), Token: resp.Msg.GetTicket(), Expires: resp.Msg.GetExpireTime().AsTime()}
	return slot.ticket, nil
}

// another reports whether a box's name leads to another box than a ticket that was got by it: that box was deleted, and one of the same name
// made. The ticket for the new one is kept then.
func (c *Client) another(ctx context.Context, box string, refused Ticket, err error) bool {
	if carrel.ReasonOf(err) != ReasonBoxNotRunning && carrel.CodeOf(err) != carrel.CodeNotFound || box == refused.Box || refused.Box == "" {
		return false
	}
	c.forget(box, refused)
	fresh, err := c.Ticket(ctx, box)
	return err == nil && fresh.Box != refused.Box
}

// forget drops a ticket that was refused, unless a newer one has taken its place.
func (c *Client) forget(box string, refused Ticket) {
	slot := c.tickets.slot(box)
	slot.mu.Lock()
	defer slot.mu.Unlock()
	if slot.ticket.Token == refused.Token {
		slot.ticket = Ticket{}
	}
}
