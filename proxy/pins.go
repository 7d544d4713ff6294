package proxy

import "github.com/faasd-sec/faasd-sec/client"

// followPins has the callers' pins keep up with their file, and tells of it. A
// broken file is told of once: each of its readings would say the same.
func (p *Proxy) followPins(pins *client.Pins) {
	if pins == nil {
		return
	}
	pins.Follow(func(err error) {
		p.met.pinsRead(err)
		if err != nil {
			p.log.Error("the file of pins cannot be used, those read before hold", "err", err)
			return
		}
		p.log.Info("the file of pins was read anew")
	})
}
