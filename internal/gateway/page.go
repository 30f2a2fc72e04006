package gateway

// pageScriptHash is the SHA-256, in base64, of the one script in page.html; a test compares them.
const pageScriptHash = "993TFwPwOG2Rq1aVLz/ErvQrEhxkuq8wfMYvQyv8p+I="
