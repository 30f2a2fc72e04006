package auth

import (
	"slices"

	"carrel.dev/carrel/internal/carrel"
)

// Need is the kind of right that a method asks for.
type Need int

const (
	NeedNothing  Need = iota + 1 // anyone, even without a token; the method checks what it is given
	NeedUser                     // any user
	NeedRole                     // a role in the organisation that the request is about
	NeedOperator                 // the platform role
	NeedPeer                     // a certificate of one of these roles
)

// Rule is one row of the policy table.
type Rule struct {
	Need Need
	// Role is the least role in the organisation, for NeedRole.
	Role Role
	// Peers may call the method, for NeedPeer.
	Peers []PeerRole
	// Mutates marks a method that changes something: each call is kept in the audit.
	Mutates bool
}

// policy is the one policy table: every method of every service and what it needs. A role is checked in
// the organisation that owns what the request is about.
var policy = map[string]Rule{
	"/carrel.v1.BoxService/CreateBox":      {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.BoxService/GetBox":         {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.BoxService/ListBoxes":      {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.BoxService/UpdateBox":      {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.BoxService/StartBox":       {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.BoxService/StopBox":        {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.BoxService/PauseBox":       {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.BoxService/ResumeBox":      {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.BoxService/RestartBox":     {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.BoxService/DeleteBox":      {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.BoxService/WaitBox":        {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.BoxService/WatchBoxes":     {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.BoxService/ListBoxEvents":  {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.BoxService/GetRun":         {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.BoxService/GetBoxActivity": {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.BoxService/KeepBoxAwake":   {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.BoxService/SetBoxPort":     {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.BoxService/ListBoxPorts":   {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.BoxService/CreatePortURL":  {Need: NeedRole, Role: RoleMember, Mutates: true},
	// What may be done with the ticket depends on its scopes: see ScopeRole.
	"/carrel.v1.BoxService/CreateTicket": {Need: NeedRole, Role: RoleViewer},

	"/carrel.v1.ProcessService/StartProcess":  {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.ProcessService/RunProcess":    {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.ProcessService/AttachProcess": {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.ProcessService/ListProcesses": {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.ProcessService/GetProcess":    {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.ProcessService/WriteInput":    {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.ProcessService/SignalProcess": {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.ProcessService/ResizeProcess": {Need: NeedRole, Role: RoleMember, Mutates: true},

	"/carrel.v1.FileService/StatFile":        {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.FileService/ListFiles":       {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.FileService/FindFiles":       {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.FileService/ReadFile":        {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.FileService/StatUpload":      {Need: NeedRole, Role: RoleMember},
	"/carrel.v1.FileService/WriteFile":       {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.FileService/MoveFile":        {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.FileService/CopyFile":        {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.FileService/RemoveFile":      {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.FileService/MakeDirectory":   {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.FileService/WatchFiles":      {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.FileService/DownloadArchive": {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.FileService/UploadArchive":   {Need: NeedRole, Role: RoleMember, Mutates: true},

	"/carrel.v1.PortService/OpenWeb":          {Need: NeedUser, Mutates: true},
	"/carrel.v1.PortService/OpenPort":         {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.PortService/ListBoxListeners": {Need: NeedRole, Role: RoleViewer},

	"/carrel.v1.NotebookService/Execute":         {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.NotebookService/GetExecution":    {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.NotebookService/AnswerInput":     {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.NotebookService/Interrupt":       {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.NotebookService/GetStatus":       {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.NotebookService/ListKernelSpecs": {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.NotebookService/StartKernel":     {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.NotebookService/RestartKernel":   {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.NotebookService/ShutdownKernel":  {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.NotebookService/GetNotebook":     {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.NotebookService/EditNotebook":    {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.NotebookService/WatchNotebooks":  {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.NotebookService/CompleteCode":    {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.NotebookService/InspectCode":     {Need: NeedRole, Role: RoleMember, Mutates: true},
	"/carrel.v1.NotebookService/GetUsage":        {Need: NeedRole, Role: RoleViewer},

	// A user's own keys.
	"/carrel.v1.SSHService/AddSSHKey":            {Need: NeedUser, Mutates: true},
	"/carrel.v1.SSHService/ListSSHKeys":          {Need: NeedUser},
	"/carrel.v1.SSHService/RemoveSSHKey":         {Need: NeedUser, Mutates: true},
	"/carrel.v1.SSHService/CreateSSHCertificate": {Need: NeedUser, Mutates: true},
	"/carrel.v1.SSHService/GetSSHInfo":           {Need: NeedUser},

	"/carrel.v1.TemplateService/PushTemplate":       {Need: NeedRole, Role: RoleAdmin, Mutates: true},
	"/carrel.v1.TemplateService/GetTemplate":        {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.TemplateService/ListTemplates":      {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.TemplateService/UpdateTemplatePool": {Need: NeedOperator, Mutates: true},
	"/carrel.v1.TemplateService/ListPrebuilds":      {Need: NeedRole, Role: RoleViewer},

	// Building runs the maintainer scripts of packages on a node.
	"/carrel.v1.ImageService/BuildImage":  {Need: NeedOperator, Mutates: true},
	"/carrel.v1.ImageService/ImportImage": {Need: NeedRole, Role: RoleAdmin, Mutates: true},
	"/carrel.v1.ImageService/DeleteImage": {Need: NeedRole, Role: RoleAdmin, Mutates: true},
	"/carrel.v1.ImageService/GetImage":    {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.ImageService/ListImages":  {Need: NeedRole, Role: RoleViewer},

	"/carrel.v1.OperationService/GetOperation":   {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.OperationService/ListOperations": {Need: NeedRole, Role: RoleViewer},

	"/carrel.v1.OrgService/CreateOrg":    {Need: NeedOperator, Mutates: true},
	"/carrel.v1.OrgService/GetOrg":       {Need: NeedRole, Role: RoleViewer},
	"/carrel.v1.OrgService/ListOrgs":     {Need: NeedUser},
	"/carrel.v1.OrgService/SetMember":    {Need: NeedRole, Role: RoleAdmin, Mutates: true},
	"/carrel.v1.OrgService/RemoveMember": {Need: NeedRole, Role: RoleAdmin, Mutates: true},
	"/carrel.v1.OrgService/ListMembers":  {Need: NeedRole, Role: RoleViewer},

	"/carrel.v1.UserService/CreateUser": {Need: NeedOperator, Mutates: true},
	"/carrel.v1.UserService/ListUsers":  {Need: NeedOperator},
	"/carrel.v1.UserService/WhoAmI":     {Need: NeedUser},

	// A user's own tokens; those of others are for operators.
	"/carrel.v1.TokenService/CreateToken": {Need: NeedUser, Mutates: true},
	"/carrel.v1.TokenService/ListTokens":  {Need: NeedUser},
	"/carrel.v1.TokenService/RevokeToken": {Need: NeedUser, Mutates: true},

	"/carrel.v1.NodeService/GetNode":         {Need: NeedOperator},
	"/carrel.v1.NodeService/ListNodes":       {Need: NeedOperator},
	"/carrel.v1.NodeService/UpdateNode":      {Need: NeedOperator, Mutates: true},
	"/carrel.v1.NodeService/CreateJoinToken": {Need: NeedOperator, Mutates: true},
	"/carrel.v1.NodeService/RemoveNode":      {Need: NeedOperator, Mutates: true},
	"/carrel.v1.NodeService/ListGateways":    {Need: NeedOperator},
	"/carrel.v1.NodeService/RemoveGateway":   {Need: NeedOperator, Mutates: true},

	// Who joins has a join token, or is a node that asks for its proxy's certificate.
	"/carrel.link.v1.JoinService/Join": {Need: NeedNothing, Mutates: true},

	"/carrel.link.v1.NodeLink/WatchDesired":   {Need: NeedPeer, Peers: []PeerRole{PeerNode}},
	"/carrel.link.v1.NodeLink/Report":         {Need: NeedPeer, Peers: []PeerRole{PeerNode}},
	"/carrel.link.v1.NodeLink/CommitSnapshot": {Need: NeedPeer, Peers: []PeerRole{PeerNode}},
	// A node asks for its proxy's new certificate by joining for it again.
	"/carrel.link.v1.NodeLink/Renew": {Need: NeedPeer, Peers: []PeerRole{PeerNode}},

	"/carrel.link.v1.GatewayLink/WatchRoutes":   {Need: NeedPeer, Peers: []PeerRole{PeerGateway}},
	"/carrel.link.v1.GatewayLink/ExchangeToken": {Need: NeedPeer, Peers: []PeerRole{PeerGateway}},
	"/carrel.link.v1.GatewayLink/Renew":         {Need: NeedPeer, Peers: []PeerRole{PeerGateway}},
	"/carrel.link.v1.GatewayLink/GetSecrets":    {Need: NeedPeer, Peers: []PeerRole{PeerGateway}},
	"/carrel.link.v1.GatewayLink/WakeBox":       {Need: NeedPeer, Peers: []PeerRole{PeerGateway}, Mutates: true},
	"/carrel.link.v1.GatewayLink/FindBox":       {Need: NeedPeer, Peers: []PeerRole{PeerGateway}},
	"/carrel.link.v1.GatewayLink/Audit":         {Need: NeedPeer, Peers: []PeerRole{PeerGateway}},
}

// The scopes of a ticket.
const (
	ScopeExec = "exec" // everything that can be done in a box
	ScopeView = "view" // look, change nothing
)

// scopeRoles says which role in the box's organisation each scope of a ticket needs.
var scopeRoles = map[string]Role{ScopeExec: RoleMember, ScopeView: RoleViewer}

// ScopeOf is the most that a role may do with boxes; empty: nothing.
func ScopeOf(role Role) string {
	for _, scope := range []string{ScopeExec, ScopeView} {
		if role.AtLeast(scopeRoles[scope]) {
			return scope
		}
	}
	return ""
}

// AllowScope decides whether p may have a ticket with this scope for a box of org. Errors are as
// those of Allow, and CodeInvalid for an unknown scope.
func AllowScope(p Principal, scope string, org carrel.OrgID) error {
	role, ok := scopeRoles[scope]
	if !ok {
		return carrel.Errorf(carrel.CodeInvalid, "bad_scope", "%q is no scope of a ticket: use exec or view", scope)
	}
	return allowRole(p, role, org)
}

// RuleOf is the row of a method, named as in its URL: "/carrel.v1.BoxService/GetBox".
func RuleOf(method string) (Rule, bool) {
	r, ok := policy[method]
	return r, ok
}

// Allow decides by the policy table alone whether p may call method on something that belongs to org.
// The org may be empty for methods that do not need a role. Errors: CodeUnauthorized for nobody,
// CodeNotFound when p is nothing in org (so that nobody learns what other organisations have), and
// CodeDenied when p may know of it but not do this. It is safe for concurrent use.
func Allow(p Principal, method string, org carrel.OrgID) error {
	rule, ok := policy[method]
	if !ok {
		return carrel.Errorf(carrel.CodeDenied, "no_policy", "nobody may call %s: it is not in the policy table", method)
	}
	if rule.Need == NeedNothing {
		return nil
	}
	if rule.Need == NeedPeer {
		if slices.Contains(rule.Peers, p.Peer.Role) {
			return nil
		}
		if p.Anonymous() {
			return carrel.Errorf(carrel.CodeUnauthorized, "certificate_needed", "this is for parts of Carrel that show a certificate of this cluster")
		}
		return carrel.Errorf(carrel.CodeDenied, "wrong_peer", "this is for a %s of this cluster", rule.Peers[0])
	}
	if p.User == "" {
		if p.Peer.Role != "" {
			return carrel.Errorf(carrel.CodeDenied, "user_needed", "this is for users; a certificate of a %s does not give the right to it", p.Peer.Role)
		}
		return carrel.Errorf(carrel.CodeUnauthorized, "token_needed", "say who you are with an API token: Authorization: Bearer TOKEN")
	}
	switch rule.Need {
	case NeedUser:
		return nil
	case NeedOperator:
		if !p.Operator {
			return carrel.Errorf(carrel.CodeDenied, "operator_needed", "only an operator of the platform may do this; ask one")
		}
		return nil
	}
	return allowRole(p, rule.Role, org)
}

func allowRole(p Principal, least Role, org carrel.OrgID) error {
	have := p.Roles[org]
	if org == "" || !have.AtLeast(RoleViewer) {
		return carrel.NotFound("organisation", string(org))
	}
	if !have.AtLeast(least) {
		e := carrel.Errorf(carrel.CodeDenied, "role_too_low", "you are %s in this organisation and this needs the role %s; ask an owner of it", have, least)
		e.Metadata = map[string]string{"role": string(have), "needed": string(least), "org": string(org)}
		return e
	}
	return nil
}
