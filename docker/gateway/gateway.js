// What nginx cannot say by configuration alone: a key's hash, and its own figures in Prometheus' format.
import crypto from 'crypto';

// SHA-256 of the API key, in hexadecimal; '' without one. Keys are random (256 bits), so a plain hash cannot be
// guessed back and no slow password hash is needed.
function key_hash(r) {
    const bearer = /^Bearer (.+)$/.exec(r.headersIn['authorization'] || '');
    const key = r.headersIn['x-api-key'] || (bearer && bearer[1]);
    return key ? crypto.createHash('sha256').update(key).digest('hex') : '';
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
