// Drawn for Carrel on a grid of 20 by 20, in lines of 1.6.
const paths = {
  activity: "M2 10h3.5l2.5-6 4 12 2.5-6H18",
  box: "M10 2.5 17 6v8l-7 3.5L3 14V6zM3 6l7 3.5L17 6M10 9.5v8",
  check: "m4 10.5 4 4 8-9",
  chevron: "m7 4 6 6-6 6",
  close: "m5 5 10 10M15 5 5 15",
  command: "M7 7h6v6H7zM7 7V5a2 2 0 1 0-2 2zM13 7h2a2 2 0 1 0-2-2zM13 13v2a2 2 0 1 0 2-2zM7 13H5a2 2 0 1 0 2 2z",
  copy: "M7 7h9v9H7zM4 13V4h9",
  delete: "M4 6h12M8 6V4h4v2M6 6l.7 11h6.6L14 6M8.5 9v5M11.5 9v5",
  down: "m4 7 6 6 6-6",
  edit: "m4 13-.7 3.7L7 16l9-9-3-3zM11.5 5.5l3 3",
  events: "M4 5h12M4 10h12M4 15h7",
  external: "M11 4h5v5M16 4l-7 7M14 11v5H4V6h5",
  files: "M3 5.5h5l1.5 2H17v8H3z",
  help: "M10 17a7 7 0 1 0 0-14 7 7 0 0 0 0 14M8 8a2 2 0 1 1 2.8 1.8c-.5.3-.8.6-.8 1.2v.5M10 14v.1",
  key: "M7 13a3 3 0 1 0 0-6 3 3 0 0 0 0 6M10 10h7v3M14 10v2",
  logs: "M5 3h7l3.5 3.5V17H5zM8 9h4.500M8 12h4.500M8 15h2.500",
  menu: "M3 6h14M3 10h14M3 14h14",
  moon: "M16 11.5A6.5 6.5 0 1 1 8.5 4a5 5 0 0 0 7.5 7.5",
  more: "M4.6 10a.4.4 0 1 0 .8 0 .4.4 0 1 0-.8 0M9.6 10a.4.4 0 1 0 .8 0 .4.4 0 1 0-.8 0M14.6 10a.4.4 0 1 0 .8 0 .4.4 0 1 0-.8 0",
  node: "M3 4h14v5H3zM3 11h14v5H3zM6 6.5h.1M6 13.5h.1",
  notebook: "M5 3h11v14H5zM8 3v14M3 6h3M3 10h3M3 14h3M11 7h3M11 10h3",
  pause: "M7 4v12M13 4v12",
  play: "M6 4v12l10-6z",
  plus: "M10 4v12M4 10h12",
  ports: "M10 17a7 7 0 1 0 0-14 7 7 0 0 0 0 14M3 10h14M10 3c2.5 2 3 4.5 3 7s-.5 5-3 7c-2.5-2-3-4.5-3-7s.5-5 3-7",
  restart: "M16 10a6 6 0 1 1-2-4.5M14.5 2.5v3.5H11",
  search: "M9 15A6 6 0 1 0 9 3a6 6 0 0 0 0 12M13.5 13.5 17 17",
  stop: "M5 5h10v10H5z",
  sun: "M10 13.5a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7M10 2v2M10 16v2M2 10h2M16 10h2M4.300 4.300l1.400 1.400M14.300 14.300l1.400 1.400M4.300 15.700l1.400-1.400M14.300 5.700l1.400-1.400",
  terminal: "M3 4h14v12H3zM6 8l2.5 2L6 12M10.5 12.5H14",
  upload: "M10 13V4M6 7.5 10 3.5l4 4M3 13v3.5h14V13",
  download: "M10 3v9.5M6 9l4 4 4-4M3 13v3.5h14V13",
  user: "M10 10a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7M3.5 17c.5-3.5 3-5 6.5-5s6 1.5 6.5 5",
  warning: "M10 3 18 17H2zM10 8v4M10 14.5v.1",
} as const;

export type IconName = keyof typeof paths;

/** A picture that says nothing by itself: what it stands beside has the words. */
export function Icon({ name, size = 18 }: { name: IconName; size?: number }) {
  return (
    <svg className="icon" viewBox="0 0 20 20" width={size} height={size} fill="none" stroke="currentColor" strokeWidth="1.6" strokeLinecap="round" strokeLinejoin="round" aria-hidden="true">
      <path d={paths[name]} />
    </svg>
  );
}
