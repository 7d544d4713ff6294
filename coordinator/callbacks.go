package coordinator

import (
	"net/url"

	"github.com/faasd-sec/faasd-sec/api"
)

// checkCallback refuses what is no address to call back.
func checkCallback(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || len(text) > 2048 {
		return api.Invalid(api.HeaderCallback, "use an http or https URL without a password, of at most 2,048 characters", "it is not such a URL")
	}
	return nil
}

func (c *Coordinator) callback() {}
