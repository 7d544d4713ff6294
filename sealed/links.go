package sealed

import "github.com/faasd-sec/faasd-sec/sealed/internal/keysched"

// LinksOf says what messages of a role have to do with links; only this module
// can use it.
func LinksOf(r Role) keysched.Links {
	switch r {
	case RoleRequest:
		return keysched.MakesLinks
	case RoleReply:
		return keysched.TakesLinks
	default:
		return keysched.NoLinks
	}
}
