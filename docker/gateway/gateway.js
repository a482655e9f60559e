// What nginx cannot say by configuration alone: a key's hash, and its own figures in Prometheus' format.
import crypto from 'crypto';

// The API key: programs send it by itself, people type it into their browser's login as password, under any name.
function key(r) {
    const given = /^(Bearer|Basic) (.+)$/.exec(r.headersIn['authorization'] || '');
    if (r.headersIn['x-api-key'] || !given) {
        return r.headersIn['x-api-key'];
    }
    return given[1] === 'Bearer' ? given[2] : Buffer.from(given[2], 'base64').toString().replace(/^[^:]*:/, '');
}

// Its SHA-256 in hexadecimal; '' without one. Keys are random (256 bits), so a plain hash cannot be guessed back and no
// slow password hash is needed.
function key_hash(r) {
    const given = key(r);
    return given ? crypto.createHash('sha256').update(given).digest('hex') : '';
}

async function metrics(r) {
    const status = await r.subrequest('/stub_status');
    const counts = status.responseText.match(/\d+/g);  // active; accepts handled requests; reading, writing, waiting
    r.headersOut['Content-Type'] = 'text/plain; version=0.0.4';
    r.return(200, [
        '# TYPE visard_gateway_connections gauge',
        `visard_gateway_connections{state="reading"} ${counts[4]}`,
        `visard_gateway_connections{state="writing"} ${counts[5]}`,
        `visard_gateway_connections{state="waiting"} ${counts[6]}`,
        '# TYPE visard_gateway_connections_accepted_total counter',
        `visard_gateway_connections_accepted_total ${counts[1]}`,
        '# TYPE visard_gateway_requests_total counter',
        `visard_gateway_requests_total ${counts[3]}`,
        '',
    ].join('\n'));
}

export default {key_hash, metrics};
