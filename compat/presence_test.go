package compat

import (
	"context"
	"encoding/json"
	"time"

	"github.com/centrifugal/centrifuge"
	"github.com/redis/rueidis"
)

// Presence is a centrifuge.PresenceManager on any rueidis.Client: for a program that wants its
// presence on Cache.Client(), because centrifuge's own makes its client itself. Each channel
// is a hash of its clients. Pass it to Node.SetPresenceManager.
type Presence struct {
	client rueidis.Client
	ttl    time.Duration // of a client that is not added again
}

var _ centrifuge.PresenceManager = (*Presence)(nil)

// present is a client as its field of the hash.
type present struct {
	Info  *centrifuge.ClientInfo
	Until time.Time
}

func NewPresence(client rueidis.Client, ttl time.Duration) *Presence {
	return &Presence{client: client, ttl: ttl}
}

func presenceKey(ch string) string { return "presence:" + ch }

func (p *Presence) AddPresence(ch, clientID string, info *centrifuge.ClientInfo) error {
	field, err := json.Marshal(present{Info: info, Until: time.Now().Add(p.ttl)})
	if err != nil {
		return err
	}
	key, b := presenceKey(ch), p.client.B()
	for _, r := range p.client.DoMulti(context.Background(),
		b.Hset().Key(key).FieldValue().FieldValue(clientID, string(field)).Build(),
		b.Pexpire().Key(key).Milliseconds(p.ttl.Milliseconds()).Build()) {
		if err := r.Error(); err != nil {
			return err
		}
	}
	return nil
}

func (p *Presence) RemovePresence(ch, clientID, _ string) error {
	return p.client.Do(context.Background(), p.client.B().Hdel().Key(presenceKey(ch)).Field(clientID).Build()).Error()
}

func (p *Presence) Presence(ch string) (map[string]*centrifuge.ClientInfo, error) {
	cmd := p.client.B().Hgetall().Key(presenceKey(ch)).Build()
	fields, err := p.client.Do(context.Background(), cmd).AsStrMap()
	if err != nil {
		return nil, err
	}
	clients, now := make(map[string]*centrifuge.ClientInfo, len(fields)), time.Now()
	for id, field := range fields {
		var c present
		if err := json.Unmarshal([]byte(field), &c); err != nil {
			return nil, err
		}
		if now.Before(c.Until) {
			clients[id] = c.Info
		}
	}
	return clients, nil
}

func (p *Presence) PresenceStats(ch string) (centrifuge.PresenceStats, error) {
	clients, err := p.Presence(ch)
	users := make(map[string]bool, len(clients))
	for _, c := range clients {
		users[c.UserID] = true
	}
	return centrifuge.PresenceStats{NumClients: len(clients), NumUsers: len(users)}, err
}
