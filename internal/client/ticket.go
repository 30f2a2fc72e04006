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

// Arriving makes calls of ctx those of somebody who comes to use a box, and does not only look at it: when the box sleeps they wake it, if its policy lets
// them, and wait until it is up. Exec, Dial, the transfers of files, and the calls that execute something are such calls by themselves.
func Arriving(ctx context.Context) context.Context { return context.WithValue(ctx, arriving{}, true) }

type arriving struct{}

// admission is what a call for a box goes with: a ticket, or the API token itself where the box has no run that a ticket could be for and the caller
// comes to use it, or where the caller may not do everything that a ticket is for: what else they may, the gateway knows.
func (c *Client) admission(ctx context.Context, box string) (Ticket, error) {
	ticket, err := c.Ticket(ctx, box)
	if carrel.ReasonOf(err) == ReasonRoleTooLow {
		return Ticket{Box: box}, nil
	}
	if carrel.ReasonOf(err) != ReasonBoxNotRunning || ctx.Value(arriving{}) == nil {
		return ticket, err
	}
	if c.onAsleep != nil {
		c.onAsleep(box, err)
	}
	return Ticket{Box: box, present: true}, nil
}

// refused sees to a ticket with which a call failed, and reports whether the call makes sense with another one.
func (c *Client) refused(ctx context.Context, box string, ticket Ticket, err error) bool {
	asleep := carrel.ReasonOf(err) == ReasonBoxNotRunning && ctx.Value(arriving{}) != nil && ticket.Token != ""
	if asleep || outdated(err) {
		c.forget(box, ticket)
	}
	return asleep || outdated(err) && ticket.Token != ""
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
