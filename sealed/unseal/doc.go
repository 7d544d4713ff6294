// Package unseal is the receiving half of faasd-sec's envelope: it opens
// messages, keeps private keys, and encodes the bodies that carry private keys.
// Agents, callers, owners and key brokers link it; coordinators and nodes must
// not.
package unseal
