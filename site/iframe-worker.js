// A browser starts no Worker for a page that was opened from the disk. There, the script of the search runs in a frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      const waiting = [];
      frame.hidden = true;
      frame.srcdoc = `<script>window.postMessage = data => parent.postMessage({ worker: data }, "*")</script>
        <script src="${new URL(url, location)}"></script>`;
      frame.onload = () => {
        this.postMessage = data => frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
        waiting.forEach(this.postMessage);
      };
      this.postMessage = data => waiting.push(data);
      addEventListener("message", ({ source, data }) => {
        if (source === frame.contentWindow) this.dispatchEvent(new MessageEvent("message", { data: data.worker }));
      });
      document.documentElement.append(frame);
    }
  };
}
